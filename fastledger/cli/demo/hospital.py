"""``fastledger demo``: the main job from end to end, on real histories or on generated ones."""

import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastledger.cli.options import (
    FILE,
    LedgerTarget,
    command_options,
    password_option,
    read_password,
    retry_option,
)
from fastledger.cli.output import Exit, Output
from fastledger.errors import Code, InputError

if TYPE_CHECKING:
    from fastledger.cli.demo.homes import Home

OWN_NODE = "own"
STAGE_TITLES = {
    "read": "read",
    "validate": "validate",
    "whose": "whose it is",
    "enrol": "enrol (keys, consents)",
    "encrypt": "encrypt",
    "sign": "sign",
    "blobs": "store envelopes",
    "border": "scan, parse",
    "verify": "verify",
    "execute": "execute, append",
    "sync": "sync",
    "settle": "settle",
    "checkpoint": "checkpoint (beside)",
    "submit": "submit (waiting for the node)",
}


@click.command()
@click.option(
    "--bundles",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="FHIR sources (bundle, directory, tar(.xz), NDJSON); without it, generated histories.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    help="Where all goes; a new temporary folder if absent.",
)
@click.option(
    "--node",
    "node_url",
    is_flag=False,
    flag_value=OWN_NODE,
    metavar="[URL]",
    help="Run through a node: the one at URL, where --keystore holds its regulator; else one started for it.",
)
@click.option("--token-file", type=FILE, help="The token that the node at URL asks for.")
@click.option("--ca", type=FILE, help="Authorities to trust for the node at URL (PEM).")
@click.option(
    "--keystore", "keystore_path", type=FILE, envvar="FASTLEDGER_KEYSTORE", help="For the node at URL."
)
@retry_option
@password_option
@click.option("--as", "entry", default="regulator", show_default=True, help="The regulator in the keystore.")
@click.option("--patients", type=click.IntRange(1, 100_000), default=40, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the generated histories.")
@click.option("--force", is_flag=True, help="Remove what an earlier demo left in --dir.")
@command_options
def demo(
    output: Output,
    sources: tuple[Path, ...],
    folder: Path | None,
    patients: int,
    seed: int,
    force: bool,
    node_url: str | None,
    token_file: Path | None,
    ca: Path | None,
    retry_for_s: int,
    **wallet: Any,
) -> None:
    """Two hospitals' histories through the whole engine, then consent, audit, amendment, erasure and proof."""
    from fastledger.cli.demo.scenario import Scenario, ScenarioError

    folder = _prepare(folder, force)
    target = None
    if node_url not in (None, OWN_NODE):
        target = LedgerTarget(str(node_url), token_file, ca, retry_for_s=retry_for_s)
    scenario = Scenario(_home(folder, node_url is not None, target, **wallet), folder, output)
    begun = time.perf_counter()
    try:
        with output.progress("ingest") as bar:
            scenario.ingest(sources, patients=patients, seed=seed, progress=bar)
        ingest_seconds = time.perf_counter() - begun
        scenario.care()
        with output.progress("verify") as bar:
            scenario.settle(bar)
    except ScenarioError as error:
        if output.as_json:
            output.answer({"ok": False, "problem": str(error), "steps": scenario.steps})
        else:
            click.secho(f"error: {error}", fg="red", err=True)
        raise click.exceptions.Exit(int(Exit.WRONG)) from None
    finally:
        scenario.close()
    answer = _report(scenario, ingest_seconds, time.perf_counter() - begun)
    _show(output, scenario, answer)


def _home(
    folder: Path,
    with_node: bool,
    target: LedgerTarget | None,
    keystore_path: Path | None,
    password_file: Path | None,
    entry: str,
) -> "Home":
    """The ledger of the demo: a new one here, a new one under a node of its own, or that of a node elsewhere."""
    from fastledger.cli.demo.homes import ChildNodeHome, DirectoryHome, NodeHome
    from fastledger.crypto.keystore import Keystore
    from fastledger.wallet.wallet import Wallet

    if target is None:
        return ChildNodeHome(folder) if with_node else DirectoryHome(folder / "ledger")
    if keystore_path is None:
        raise click.UsageError("--node URL needs --keystore with the wallet of the node's regulator")
    regulator = Wallet.load(Keystore.open(keystore_path, read_password(password_file)), entry)
    return NodeHome(target.connect(), regulator)


def _prepare(folder: Path | None, force: bool) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="fastledger-demo-"))
    if folder.exists() and any(folder.iterdir()):
        if not force or not (folder / "ledger" / "genesis.cbor").is_file():
            raise InputError(
                "the folder is not empty (--force removes what an earlier demo left)", code=Code.BAD_QUERY
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _stages(scenario: Any, wall_seconds: float) -> list[dict[str, Any]]:
    seconds = {name: total for name, (total, _) in scenario.times.snapshot().items()}
    if scenario.ledger_seconds:
        seconds.update(scenario.ledger_seconds)
        del seconds["submit"]  # that is the ledger's time, counted above stage by stage
    report = scenario.report
    rows = []
    for name, title in STAGE_TITLES.items():
        spent = seconds.get(name, 0.0)
        if spent <= 0:
            continue
        rows.append(
            {
                "stage": title,
                "seconds": round(spent, 3),
                "share": round(spent / wall_seconds, 4),
                "resources_per_s": round(report.resources / spent),
                "mb_per_s": round(report.resource_bytes / spent / 1e6, 1),
            }
        )
    return rows


def _report(scenario: Any, ingest_seconds: float, all_seconds: float) -> dict[str, Any]:
    report = scenario.report
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "ok": True,
        "resources": report.resources,
        "resource_bytes": report.resource_bytes,
        "refused": report.refused,
        "committed": report.committed,
        "patients": report.patients,
        "practitioners": report.practitioners,
        "transactions": scenario.transactions,
        "height": scenario.height,
        "ingest_seconds": round(ingest_seconds, 2),
        "seconds": round(all_seconds, 2),
        "resources_per_s": round(report.resources / ingest_seconds),
        "mb_per_s": round(report.resource_bytes / ingest_seconds / 1e6, 1),
        "peak_memory_mib": round(peak / (1024 if sys.platform != "darwin" else 1024 * 1024)),
        "steps": scenario.steps,
        "stages": _stages(scenario, ingest_seconds),
        "places": {name: str(path) for name, path in scenario.places.items()},
    }


def _show(output: Output, scenario: Any, answer: dict[str, Any]) -> None:
    if output.as_json:
        output.answer(answer)
        return
    output.table(
        "Where the time of the ingest went",
        ("stage", "seconds", "share", "resources/s", "MB/s"),
        [
            (
                row["stage"],
                f"{row['seconds']:.2f}",
                f"{row['share']:.1%}",
                f"{row['resources_per_s']:,}",
                f"{row['mb_per_s']:,}",
            )
            for row in answer["stages"]
        ],
    )
    output.say(
        f"{answer['resources']:,} resources ({answer['resource_bytes'] / 1e6:.1f} MB) of "
        f"{answer['patients']} patients: {answer['committed']:,} committed, {answer['refused']} refused, "
        f"in {answer['ingest_seconds']} s ({answer['resources_per_s']:,}/s); "
        f"all in {answer['seconds']} s, at most {answer['peak_memory_mib']} MiB."
    )
    output.say("Where everything lies:")
    for name, path in answer["places"].items():
        output.say(f"  {name}: {path}")
