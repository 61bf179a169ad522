"""The chart of a report, as SVG or PNG by the file's name. Needs matplotlib, which the package itself does not."""

from pathlib import Path
from typing import Any

from fastledger.bench.measure import Row
from fastledger.errors import InputError
from fastledger.extras import require


def draw(report: dict[str, Any], path: Path) -> None:
    """Draws a bar for each contestant, on a logarithmic axis: how many times as fast as the first of its task it is.

    Raises:
        InstallationError: matplotlib is not installed.
        InputError: matplotlib cannot write such files.
    """
    require("bench")
    from matplotlib.figure import Figure

    tasks: dict[str, list[Row]] = {}
    for row in report["rows"]:
        tasks.setdefault(row["task"], []).append(row)
    figure = Figure(figsize=(9, 1.5 + 0.25 * len(report["rows"])), layout="constrained")
    axes = figure.add_subplot()
    position = 0.0
    ticks: list[float] = []
    labels: list[str] = []
    for task, group in tasks.items():
        heading = f"  {task}  (1 = {group[0]['contestant']})"
        axes.text(1.0, position, heading, va="center", fontsize=7, weight="bold")
        for row in group[1:]:
            position += 1
            axes.barh(position, row["ratio"] - 1, left=1.0, height=0.8, color="#3b6ea5")
            axes.text(row["ratio"], position, f" {row['ratio']:.1f}", va="center", fontsize=7)
            ticks.append(position)
            labels.append(row["contestant"])
        position += 1.6
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast as the peer, median of the rounds")
    axes.set_title(
        f"{report['cpu']}, {report['clock_ghz']:.2f} GHz, {report['backend']['sha256']}", fontsize=9
    )
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InputError(
            f"cannot draw a chart as {path.suffix or 'a file without a suffix'}: {error}"
        ) from None
