"""The benchmarks run, small, so that they cannot rot; no figure is judged here."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_report_runs_and_saves_its_figures(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (saved,) = tmp_path.glob("bench-*.json")
    report = json.loads(saved.read_text())
    assert report["quick"] is True
    assert {row["unit"] for row in report["rows"]} == {"x hashlib", "x coincurve"}
    assert all(row["ratio"]["median"] > 0 for row in report["rows"])
    assert "Ledger.submit" in done.stdout
    assert "binary batches" in done.stdout
    assert report["latency"]["p99_ms"] > 0
