"""The AVX-512 kernels on any machine: their intrinsics in plain C, their vectors by coincurve and hashlib.

`make emulate` runs the same programs on real AVX-512 instructions in an emulator (tests/emulator/README.md).
"""

import shutil
import subprocess
from pathlib import Path

import lane_vectors
import pytest
import sha_vectors

NATIVE = Path(__file__).resolve().parents[2] / "native"
FLAGS = [
    "-std=c11",
    "-O1",
    "-Wno-psabi",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-DFL_EMULATE_AVX512",
    "-DFL_DEBUG=1",
]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
LANES = ["testing/lanes_test.c", "secp256k1/ifma/verify8_ifma.c", "secp256k1/ifma/comb8_ifma.c"]
LANES += ["secp256k1/scalar.c", "secp256k1/modinv.c"]
SHA = ["testing/sha_test.c", "sha256_avx512.c", "sha256_portable.c"]

RECORD_BYTES = 256  # lanes_test.c: five numbers, the table's index, the expected verdict
EXPECTED_OFFSET = 5 * 32 + 4

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


def compile_program(folder: Path, sources: list[str]) -> Path:
    """Builds a test program with our own bounds checked, and under the sanitizers."""
    target = folder / "program"
    paths = [str(NATIVE / source) for source in [*sources, "testing/runtime_hosted.c"]]
    command = ["gcc", *FLAGS, *SANITIZE, f"-I{NATIVE}", "-o", str(target), *paths]
    subprocess.run(command, check=True)
    return target


def run(program: Path, vectors: bytes) -> subprocess.CompletedProcess[str]:
    """Runs a program on vectors."""
    path = program.parent / "vectors"
    path.write_bytes(vectors)
    return subprocess.run([str(program), str(path)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def lanes_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(tmp_path_factory.mktemp("lanes"), LANES)


def test_verdicts_and_hints_of_the_lane_verifiers(lanes_program: Path) -> None:
    done = run(lanes_program, lane_vectors.make_file(600))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "any key: signatures 600," in done.stdout
    assert "known key: signatures 600," in done.stdout


def test_a_wrong_expectation_is_noticed(lanes_program: Path) -> None:
    vectors = bytearray(lane_vectors.make_file(40))
    verdict_bytes = range(len(vectors) - 40 * RECORD_BYTES + EXPECTED_OFFSET, len(vectors), RECORD_BYTES)
    decided = [at for at in verdict_bytes if vectors[at] in (lane_vectors.INVALID, lane_vectors.VALID)]
    vectors[decided[0]] ^= 1
    done = run(lanes_program, bytes(vectors))
    assert done.returncode == 1
    assert done.stdout.count("wrong 1\n") == 2


def test_hashes_of_the_sixteen_lane_kernel(tmp_path: Path) -> None:
    done = run(compile_program(tmp_path, SHA), sha_vectors.make_file(5_000))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("SHA-256: hashes ")
