"""``fastledger bench``: what this machine does, beside the peers, and how to set a node up for it."""

from pathlib import Path

import click

from fastledger.cli.output import fail
from fastledger.errors import FastLedgerError, LedgerError


@click.command()
@click.option("--quick", is_flag=True, help="Run everything small: that it works, not how fast it is.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Save the figures in this file.",
)
@click.option(
    "--chart",
    "chart_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the figures into this .svg or .png file (needs the extra `bench`).",
)
def bench(quick: bool, json_path: Path | None, chart_path: Path | None) -> None:
    """Measure every kernel beside its peers and print tuning advice, some minutes long."""
    import msgspec

    from fastledger.bench import report

    found = report.run(quick)
    for line in report.lines(found):
        click.echo(line)
    try:
        if json_path is not None:
            json_path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
        if chart_path is not None:
            from fastledger.bench.chart import draw

            draw(found, chart_path)
    except FastLedgerError as error:
        fail(error, as_json=False)
    except OSError as error:
        fail(LedgerError(f"{error.strerror} (errno {error.errno})"), as_json=False)
