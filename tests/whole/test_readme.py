"""What the documents show runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "docs/embedding.md")


def blocks_of(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)


BLOCKS = [(name, number) for name in DOCUMENTS for number in range(len(blocks_of(name)))]


@pytest.mark.parametrize(("name", "number"), BLOCKS)
def test_examples_run(tmp_path: Path, name: str, number: int) -> None:
    code = blocks_of(name)[number]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_round_trip_is_short() -> None:
    (example,) = blocks_of("README.md")
    assert len(example.splitlines()) < 30
    for step in ("Ledger.create", "put_record", "grant", "query", "read", "prove", "verify_statement"):
        assert step in example
