"""Build of the native library: C sources with their instruction-set flags, and Cython modules over them.

Every source is compiled once, with its own flags, and all objects are linked into one shared object, so that one
wheel runs on any CPU of its architecture and picks its kernels at run time. ``fastledger/_native/__init__.py`` loads
the modules from it. Objects are kept in ``build/`` and made again where their inputs changed. Environment switches:
``FASTLEDGER_DEBUG=1`` (no optimisation, symbols, ``FL_VERIFY`` bounds checked) and ``FASTLEDGER_SANITIZE=1``
(AddressSanitizer and UBSan, symbols).
"""

import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython import __version__ as CYTHON_VERSION
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# What is built for; a cross build says so with _PYTHON_HOST_PLATFORM, which sysconfig reads.
PLATFORM = sysconfig.get_platform()
X86_64 = PLATFORM.endswith(("x86_64", "amd64"))
AARCH64 = PLATFORM.endswith(("aarch64", "arm64"))

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
    NATIVE_SOURCES["secp256k1/ifma/verify8_ifma.c"] = [*AVX512, "-mavx512ifma"]
    NATIVE_SOURCES["secp256k1/ifma/comb8_ifma.c"] = [*AVX512, "-mavx512ifma"]
    NATIVE_SOURCES["secp256k1/ifma/kernel_ifma.c"] = []
elif AARCH64:
    NATIVE_SOURCES["sha256_armv8.c"] = ["-march=armv8-a+crypto"]

# The Cython modules, the only border between Python and native/.
MODULES = sorted(path.stem for path in Path("fastledger/_native").glob("*.pyx"))
LIBRARY = "fastledger._native._library"

DEBUG = os.environ.get("FASTLEDGER_DEBUG") == "1"
SANITIZE = os.environ.get("FASTLEDGER_SANITIZE") == "1"

COMPILE_ARGS = ["-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter", "-pthread"]
CYTHON_ARGS = ["-Wno-unused-function"]
LINK_ARGS = ["-pthread"]
if DEBUG:
    COMPILE_ARGS += ["-O0", "-g", "-DFL_DEBUG=1"]
else:
    COMPILE_ARGS += ["-O3", "-g1" if SANITIZE else "-g0"]  # lines are enough for a report, and quick to compile
if SANITIZE:
    COMPILE_ARGS += ["-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    LINK_ARGS += ["-fsanitize=address,undefined"]
if sys.platform == "linux" and not (DEBUG or SANITIZE):
    LINK_ARGS += ["-Wl,--strip-all"]

# What every object depends on besides its own source.
SHARED_INPUTS = ["setup.py", *(str(path) for path in sorted(Path("native").rglob("*.h")))]


def is_older(product: Path, inputs: list[str]) -> bool:
    """Whether a product is missing, or older than something that it is made of."""
    if not product.exists():
        return True
    built_at = product.stat().st_mtime
    return any(Path(path).stat().st_mtime > built_at for path in inputs)


class BuildNative(build_ext):
    """``build_ext`` that compiles ``native/`` and the Cython modules to objects, each source with its own flags.

    An object is compiled again when its source, a header, this file or a switch has changed. Objects do not lie in
    setuptools' own ``build_temp``: an editable install gives that a new place each time.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = str(Path("build", f"native.{PLATFORM}-{sys.implementation.cache_tag}"))

    def build_extensions(self) -> None:
        self.force = self.force or self.switches_changed()
        sources = {str(Path("native", name)): flags for name, flags in NATIVE_SOURCES.items()}
        sources |= dict.fromkeys(self.translate_modules(), CYTHON_ARGS)
        # A compiler on every CPU; the longest source alone takes half a minute.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(self.compile_one, sources, sources.values()))
        (library,) = self.extensions
        library.extra_objects = library.depends = objects
        super().build_extensions()

    def switches_changed(self) -> bool:
        """Compares compiler and flags with those of the last build in this directory, and notes them."""
        noted = Path(self.build_temp, "flags")
        compiler = (self.compiler.compiler_so, self.compiler.linker_so, CYTHON_VERSION)
        flags = repr((compiler, COMPILE_ARGS, CYTHON_ARGS, LINK_ARGS, NATIVE_SOURCES))
        if noted.exists() and noted.read_text() == flags:
            return False
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(flags)
        return True

    def translate_modules(self) -> list[str]:
        """Has Cython write a C source for each module, if its own is out of date; returns their paths."""
        translated = cythonize(
            [Extension(f"fastledger._native.{name}", [f"fastledger/_native/{name}.pyx"]) for name in MODULES],
            build_dir=self.build_temp,
            force=self.force,
            language_level=3,
            compiler_directives={"boundscheck": False, "wraparound": False, "embedsignature": True},
        )
        return [source for extension in translated for source in extension.sources]

    def compile_one(self, source: str, flags: list[str]) -> str:
        """Compiles one source, if its object is out of date; returns the object's path."""
        output_dir = "" if source.startswith(self.build_temp) else self.build_temp
        (target,) = self.compiler.object_filenames([source], output_dir=output_dir)
        if self.force or is_older(Path(target), [source, *SHARED_INPUTS]):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            self.compiler.compile(
                [source],
                output_dir=output_dir,
                include_dirs=["native"],
                extra_postargs=[*COMPILE_ARGS, *flags],
            )
        return target


if sys.platform == "win32":
    raise SystemExit("fastledger builds on Linux and macOS only")

setup(
    ext_modules=[Extension(LIBRARY, [], extra_link_args=LINK_ARGS)],
    cmdclass={"build_ext": BuildNative},
    exclude_package_data={"fastledger._native": ["*.c", "*.pxd", "*.pyx"]},
)
