"""The kernels as C programs of their own, with their bounds checked and under the sanitizers.

Those for AVX-512 have their intrinsics in plain C, so that they run on any machine; `make emulate` runs the same
programs on AVX-512 instructions in an emulator (tests/emulator/README.md). Vectors come from coincurve and hashlib.
"""

import shutil
import subprocess
from pathlib import Path

import lane_vectors
import pytest
import sha_vectors
import sum_vectors

from fastledger._native.ecdsa import ecdsa_kernels

NATIVE = Path(__file__).resolve().parents[2] / "native"
FLAGS = ["-std=c11", "-O1", "-Wno-psabi", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-DFL_DEBUG=1"]
EMULATED = "-DFL_EMULATE_AVX512"
AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx512ifma"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SCALARS = ["secp256k1/scalar.c", "secp256k1/modinv.c"]
LANES = ["testing/lanes_test.c", "secp256k1/ifma/verify8_ifma.c", "secp256k1/ifma/comb8_ifma.c", *SCALARS]
SHA = ["testing/sha_test.c", "sha256_avx512.c", "sha256_portable.c"]

RECORDS = 600
RECORD_BYTES = 256  # lanes_test.c: five numbers, the table's index, the expected verdict
EXPECTED_OFFSET = 5 * 32 + 4  # four bytes, of which the lanes' are the first two
TREES = [kernel for kernel in ecdsa_kernels() if kernel != "ifma"]

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


def compile_program(folder: Path, sources: list[str], *flags: str) -> Path:
    """Builds a test program with our own bounds checked."""
    target = folder / "program"
    paths = [str(NATIVE / source) for source in [*sources, "testing/runtime_hosted.c"]]
    command = ["gcc", *FLAGS, *flags, f"-I{NATIVE}", "-o", str(target), *paths]
    subprocess.run(command, check=True)
    return target


def run(program: Path, vectors: bytes) -> subprocess.CompletedProcess[str]:
    """Runs a program on vectors."""
    path = program.parent / "vectors"
    path.write_bytes(vectors)
    return subprocess.run([str(program), str(path)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def vectors() -> bytes:
    return lane_vectors.make_file(RECORDS)


@pytest.fixture(scope="module")
def lanes_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(tmp_path_factory.mktemp("lanes"), LANES, EMULATED, *SANITIZE)


def test_verdicts_and_hints_of_the_lane_verifiers(lanes_program: Path, vectors: bytes) -> None:
    """Sums that meet in the lanes' own steps are left undecided, in plain C as on a CPU (SPEC-SIG-5)."""
    done = run(lanes_program, vectors)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"any key: signatures {RECORDS}," in done.stdout
    assert f"known key: signatures {RECORDS}," in done.stdout


@pytest.mark.skipif("ifma" not in ecdsa_kernels(), reason="needs a CPU with AVX-512 IFMA")
def test_verdicts_and_hints_of_the_lanes_on_a_cpu_with_ifma(tmp_path: Path, vectors: bytes) -> None:
    """The same on real instructions (SPEC-SIG-5)."""
    done = run(compile_program(tmp_path, LANES, *AVX512), vectors)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kernel", TREES)
def test_verdicts_and_hints_of_the_trees_on_kernels_of_this_cpu(
    kernel: str, tmp_path: Path, vectors: bytes
) -> None:
    """Sums that meet in their own steps are left undecided, u2 = 0, which no signature has, among them (SPEC-SIG-5)."""
    sources = ["testing/lanes_test.c", f"secp256k1/kernel_{kernel}.c", *SCALARS]
    program = compile_program(tmp_path, sources, f"-DFL_TEST_TREES=fl_secp_kernel_{kernel}", *SANITIZE)
    done = run(program, vectors)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("answer", [lane_vectors.VALID, lane_vectors.UNDECIDED])
def test_a_wrong_expectation_is_noticed(lanes_program: Path, vectors: bytes, answer: int) -> None:
    """Both a verdict and a demand for none, turned around in the record of one signature."""
    changed = bytearray(vectors)
    expected = range(len(changed) - RECORDS * RECORD_BYTES + EXPECTED_OFFSET, len(changed), RECORD_BYTES)
    at = next(at for at in expected if changed[at] == changed[at + 1] == answer)
    changed[at : at + 2] = bytes(2)
    done = run(lanes_program, bytes(changed))
    assert done.returncode == 1
    assert done.stdout.count("wrong 1\n") == 2


@pytest.mark.parametrize("kernel", TREES)
def test_randomised_sums_that_meet_on_kernels_of_this_cpu(kernel: str, tmp_path: Path) -> None:
    """Where points of a randomised sum meet, in any of its steps, the sum says nothing (SPEC-SIG-5)."""
    sources = ["testing/sums_test.c", f"secp256k1/kernel_{kernel}.c", *SCALARS]
    program = compile_program(tmp_path, sources, f"-DFL_TEST_TREES=fl_secp_kernel_{kernel}", *SANITIZE)
    done = run(program, sum_vectors.make_file())
    count = len(sum_vectors.MEETINGS)
    assert done.stdout == f"sums {2 * count}, closed {count - 1}, wrong 0\n", done.stdout + done.stderr


def test_hashes_of_the_sixteen_lane_kernel(tmp_path: Path) -> None:
    done = run(compile_program(tmp_path, SHA, EMULATED, *SANITIZE), sha_vectors.make_file(5_000))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("SHA-256: hashes ")
