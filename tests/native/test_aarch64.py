"""The native layer compiled for aarch64 and run in an emulator: both of its backends give hashlib's answers.

Needs a cross compiler and QEMU's user mode (Debian: gcc-aarch64-linux-gnu, qemu-user); skipped without them.
"""

import subprocess
from hashlib import sha256
from itertools import accumulate, pairwise
from pathlib import Path
from shutil import which

import pytest
from conftest import PROJECT_ROOT

from fastledger.crypto.merkle import merkle_root
from fastledger.crypto.work import header_hashes, search_nonce

COMPILER = which("aarch64-linux-gnu-gcc")
EMULATOR = which("qemu-aarch64") or which("qemu-aarch64-static")
SOURCES = ("dispatch", "sha256", "sha256_portable", "sha256_armv8", "merkle", "pow", "workers")
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-march=armv8-a+crypto", "-pthread", "-static")

pytestmark = pytest.mark.skipif(
    COMPILER is None or EMULATOR is None, reason="needs gcc-aarch64-linux-gnu and qemu-user"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("aarch64") / "driver"
    native = PROJECT_ROOT / "native"
    sources = [str(native / f"{name}.c") for name in SOURCES]
    own = str(PROJECT_ROOT / "tests" / "native" / "aarch64_driver.c")
    command = [str(COMPILER), *FLAGS, "-I", str(native), own, *sources, "-o", str(built)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return built


def run(driver: Path, backend: str) -> subprocess.CompletedProcess[str]:
    # Every feature, also those that the emulator's default CPU lacks.
    command = [str(EMULATOR), "-cpu", "max", str(driver), backend]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def expected(backend: str) -> list[str]:
    data = bytes(167 * i + 13 & 0xFF for i in range(32 * 1024))
    bounds = list(accumulate((7 * i for i in range(61)), initial=0))
    messages = [data[a:b] for a, b in pairwise(bounds)]
    leaves = data[: 32 * 1001]
    target = 2**240 - 1
    nonce = search_nonce(data[:80], target, 5, 300_000)
    assert nonce is not None
    return [
        f"backend {backend}",
        "messages " + "".join(sha256(message).hexdigest() for message in messages),
        "leaves " + "".join(sha256(b"\x00" + message).hexdigest() for message in messages),
        "rfc9162 " + merkle_root(leaves).hex(),
        "bitcoin " + merkle_root(leaves, "bitcoin").hex(),
        "headers " + header_hashes(data[: 80 * 33]).hex(),
        f"nonce 1 {nonce}",
    ]


@pytest.mark.parametrize("backend", ["portable", "armv8"])
def test_backends_of_aarch64(driver: Path, backend: str) -> None:
    # SPEC-HASH-1, SPEC-HASH-2
    done = run(driver, backend)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected(backend)


def test_backends_of_other_cpus_are_unknown_there(driver: Path) -> None:
    assert run(driver, "shani").returncode == 2
