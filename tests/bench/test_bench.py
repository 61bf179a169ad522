"""``fastledger bench`` runs, small, so that it cannot rot; no figure is judged here."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastledger._native import hashing as native_hashing
from fastledger.bench import report, tuning
from fastledger.bench.measure import Contestant, Row, clock_ghz, compete
from fastledger.cli.main import main
from fastledger.daemon.config.text import load_config


def test_quick_bench_prints_saves_and_advises(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the chart is drawn by matplotlib (extra dev)")
    saved, chart = tmp_path / "bench.json", tmp_path / "bench.svg"
    done = CliRunner().invoke(main, ["bench", "--quick", "--json", str(saved), "--chart", str(chart)])
    assert done.exit_code == 0, done.output
    document = json.loads(saved.read_text())
    assert document["format_version"] == report.FORMAT_VERSION
    assert document["quick"] is True
    assert document["clock_ghz"] > 0
    names = {row["contestant"] for row in document["rows"]}
    assert names >= {"hashlib loop", "coincurve loop", "scan_many", *native_hashing.backends()}
    for row in document["rows"]:
        assert 0 < row["ns"]["min"] <= row["ns"]["median"] <= row["ns"]["max"], row["task"]
        assert row["cycles"] > 0
    advice = tomllib.loads(done.output[done.output.index("[ingest]") :])
    (tmp_path / "node.toml").write_text(
        "[ledger]\npath = 'ledger'\n" + done.output[done.output.index("[ingest]") :]
    )
    config = load_config(tmp_path / "node.toml", environ={})
    assert config.ingest.batch_transactions == advice["ingest"]["batch_transactions"] > 0
    assert config.tuning.verify_threads == advice["tuning"]["verify_threads"] > 0
    assert config.tuning.table_memory_bytes == advice["tuning"]["table_memory_bytes"] > 0
    assert chart.read_text().count("hashlib loop") > 3
    assert native_hashing.backend() == native_hashing.backends()[0]


def test_chart_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the chart is drawn by matplotlib (extra dev)")
    from fastledger.bench.chart import draw
    from fastledger.errors import InputError

    document = {"rows": [], "cpu": "none", "clock_ghz": 1.0, "backend": {"sha256": "portable"}}
    with pytest.raises(InputError, match=r"cannot draw a chart as \.cake"):
        draw(document, tmp_path / "chart.cake")


def test_contestants_must_agree() -> None:
    contestants = [Contestant("first", lambda: b"a", 1), Contestant("second", lambda: b"b", 1)]
    with pytest.raises(RuntimeError, match="task: second disagrees with first"):
        compete("task", "item", contestants, rounds=1)


def test_clock_is_plausible() -> None:
    assert 0.05 < clock_ghz() < 20


def advice_row(contestant: str, items: int, unit: str, median: float) -> Row:
    ns = {"min": median, "median": median, "max": median}
    return {
        "task": "", "contestant": contestant, "items": items, "unit": unit, "ns": ns, "cycles": 1.0, "ratio": 1.0,
        "rounds": 1, "checked": "",
    }  # type: ignore[typeddict-item] # fmt: skip


@pytest.mark.parametrize(("several", "threads", "batch"), [(15_000.0, None, 1_024), (29_000.0, 1, 64)])
def test_advice_follows_the_figures(several: float, threads: int | None, batch: int) -> None:
    rows = [
        advice_row("verify_batch, 1 thread", 64, "signature", 30_500.0),
        advice_row("verify_batch, all CPUs", 64, "signature", 31_000.0),
        advice_row("verify_batch, 1 thread", 1_024, "signature", 30_000.0),
        advice_row("verify_batch, all CPUs", 1_024, "signature", several),
        advice_row("scan_many", 100, "transaction", 500.0),
    ]
    advice = tuning.advise(rows)
    assert advice["verify_threads"] == (tuning.cpu_count() if threads is None else threads)
    assert advice["batch_transactions"] == batch
    best = several if threads is None else 30_000.0
    assert advice["transactions_per_second_max"] == int(1e9 / (best + 500.0))
    assert advice["table_memory_bytes"] >= tuning.MIB
