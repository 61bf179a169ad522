"""The rules of the codec with the other cbor2: the tests run with one of the two that are supported, here with both.

An embedding program chooses the release of cbor2; what is signed, hashed and refused must not depend on it.
"""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import PROJECT_ROOT

PEER_PYTHON = Path(os.environ.get("FASTLEDGER_PEER_PYTHON", PROJECT_ROOT / ".venv-peers" / "bin" / "python"))
PEERS_REQUIRED = os.environ.get("FASTLEDGER_REQUIRE_PEERS") == "1"
# Where CBOR is written or read, and what others have to come to from our bytes.
CODEC_TESTS = (
    "tests/native/test_cbor_strict.py",
    "tests/model",
    "tests/crypto/test_hpke.py",
    "tests/crypto/test_envelope.py",
    "tests/crypto/test_keystore.py",
    "tests/consensus/test_consensus.py",
)


@pytest.fixture
def other_cbor2(tmp_path: Path) -> Path:
    """A folder with cbor2 5 alone, from the environment that has it for the COSE library."""
    found = sorted((PEER_PYTHON.parent.parent / "lib").glob("python*/site-packages/*cbor2*"))
    if not found:
        message = f"no cbor2 beside {PEER_PYTHON}: make a venv of tests/foreign/requirements.txt"
        if PEERS_REQUIRED:
            pytest.fail(message)
        pytest.skip(message)
    (tmp_path / "other").mkdir()
    for path in found:
        if path.is_dir():
            shutil.copytree(path, tmp_path / "other" / path.name)
        else:
            shutil.copy(path, tmp_path / "other" / path.name)
    return tmp_path / "other"


def test_the_rules_of_the_codec_hold_with_cbor2_5_and_6(other_cbor2: Path) -> None:  # SPEC-CBOR-1
    assert version("cbor2").startswith("6.")
    environment = {**os.environ, "PYTHONPATH": f"{other_cbor2}{os.pathsep}{PROJECT_ROOT}"}
    which = "from importlib.metadata import version; import cbor2; print(version('cbor2'), cbor2.__file__)"
    tests = [str(PROJECT_ROOT / name) for name in CODEC_TESTS]
    for words in (["-c", which], ["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=PROJECT_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        if words[0] == "-c":
            release, place = done.stdout.split()
            assert release.startswith("5.")
            assert place.startswith(str(other_cbor2))
