"""Build of the native extensions: a table of C sources with their instruction-set flags, and of modules.

Every C source is compiled once, with its own flags, and the objects are linked into each extension, so that
one wheel runs on any CPU of its architecture and picks its kernels at run time. Environment switches:
``FASTLEDGER_DEBUG=1`` (no optimisation, ``FL_VERIFY`` bounds checked) and ``FASTLEDGER_SANITIZE=1``
(AddressSanitizer and UBSan).
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86_64 = platform.machine().lower() in ("x86_64", "amd64")
AARCH64 = platform.machine().lower() in ("aarch64", "arm64")

# Field elements live in general registers: moved through vector registers they would wait, on the way back, for
# narrower stores that cannot be forwarded. -O3 only adds such moves.
FIELD_FLAGS = ["-O2", "-mgeneral-regs-only"]

# C source -> flags it needs beyond the common ones. Kernels for other CPUs are left out of the build, not
# compiled empty: dispatch.c asks the preprocessor for the architecture.
NATIVE_SOURCES: dict[str, list[str]] = {
    "dispatch.c": [],
    "sha256.c": [],
    "sha256_portable.c": [],
    "merkle.c": [],
    "pow.c": [],
    "workers.c": [],
    "clock.c": [],
    "cbor.c": [],
    "msgpack.c": [],
    "scan.c": [],
    "ecdsa.c": [],
    "secp256k1/modinv.c": [],
    "secp256k1/scalar.c": [],
    "secp256k1/keys.c": [],
    "secp256k1/select.c": [],
    "secp256k1/decide.c": [],
    "secp256k1/randomised.c": [],
    "secp256k1/batch.c": [],
    "secp256k1/kernel_portable.c": FIELD_FLAGS,
}
if X86_64:
    NATIVE_SOURCES["secp256k1/kernel_adx.c"] = FIELD_FLAGS
    NATIVE_SOURCES["sha256_shani.c"] = ["-msha", "-msse4.1", "-mssse3"]
    NATIVE_SOURCES["sha256_avx2.c"] = ["-mavx2"]
    AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw"]
    NATIVE_SOURCES["sha256_avx512.c"] = AVX512
    NATIVE_SOURCES["secp256k1/verify8_ifma.c"] = [*AVX512, "-mavx512ifma"]
    NATIVE_SOURCES["secp256k1/comb8_ifma.c"] = [*AVX512, "-mavx512ifma"]
    NATIVE_SOURCES["secp256k1/kernel_ifma.c"] = []
elif AARCH64:
    NATIVE_SOURCES["sha256_armv8.c"] = ["-march=armv8-a+crypto"]

MODULES = ("hashing", "work", "ecdsa", "scan", "view", "lmdb_batch")

DEBUG = os.environ.get("FASTLEDGER_DEBUG") == "1"
SANITIZE = os.environ.get("FASTLEDGER_SANITIZE") == "1"

COMPILE_ARGS = ["-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter", "-pthread"]
COMPILE_ARGS += ["-O0", "-g", "-DFL_DEBUG=1"] if DEBUG else ["-O3"]
LINK_ARGS = ["-pthread"]
if SANITIZE:
    COMPILE_ARGS += ["-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    LINK_ARGS += ["-fsanitize=address,undefined"]

# What every object depends on besides its own source.
SHARED_INPUTS = ["setup.py", *(str(path) for path in sorted(Path("native").rglob("*.h")))]
ALL_NATIVE_INPUTS = [*SHARED_INPUTS, *(str(path) for path in sorted(Path("native").rglob("*.c")))]


def is_older(product: Path, inputs: list[str]) -> bool:
    """Whether a product is missing, or older than something that it is made of."""
    if not product.exists():
        return True
    built_at = product.stat().st_mtime
    return any(Path(path).stat().st_mtime > built_at for path in inputs)


class BuildNative(build_ext):
    """``build_ext`` that first compiles ``native/`` to objects, each source with its own flags.

    Objects and modules are rebuilt when a source, a header, this file or an environment switch has changed.
    """

    def build_extensions(self) -> None:
        self.force = self.force or self.switches_changed()
        # A compiler on every CPU; the longest source alone takes half a minute.
        self.parallel = self.parallel or os.cpu_count()
        for name in NATIVE_SOURCES:
            Path(self.build_temp, "native", name).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(self.parallel) as pool:
            objects = list(pool.map(self.compile_native, NATIVE_SOURCES, NATIVE_SOURCES.values()))
        for extension in self.extensions:
            extension.extra_objects = objects
        super().build_extensions()

    def switches_changed(self) -> bool:
        """Compares the flags with those of the last build in this directory, and notes them."""
        noted = Path(self.build_temp, "flags")
        flags = repr((COMPILE_ARGS, LINK_ARGS, NATIVE_SOURCES))
        if noted.exists() and noted.read_text() == flags:
            return False
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(flags)
        return True

    def compile_native(self, name: str, flags: list[str]) -> str:
        """Compiles one source, if its object is out of date; returns the object's path."""
        source = str(Path("native", name))
        (target,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
        if self.force or is_older(Path(target), [source, *SHARED_INPUTS]):
            self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=["native"],
                extra_postargs=[*COMPILE_ARGS, *flags],
            )
        return target


def extensions() -> list[Extension]:
    """The Cython modules, the only border between Python and ``native/``."""
    return [
        Extension(
            f"fastledger._native.{name}",
            [f"fastledger/_native/{name}.pyx"],
            include_dirs=["native"],
            depends=ALL_NATIVE_INPUTS,
            extra_compile_args=[*COMPILE_ARGS, "-Wno-unused-function"],
            extra_link_args=LINK_ARGS,
        )
        for name in MODULES
    ]


if sys.platform == "win32":
    raise SystemExit("fastledger builds on Linux and macOS only")

setup(
    ext_modules=cythonize(
        extensions(),
        language_level=3,
        compiler_directives={"boundscheck": False, "wraparound": False, "embedsignature": True},
    ),
    cmdclass={"build_ext": BuildNative},
    exclude_package_data={"fastledger._native": ["*.c", "*.pyx"]},
)
