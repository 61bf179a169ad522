"""Commands that keep a ledger: backup, restore, prune, export, import, snapshot, collect-orphans.

They need no node key, and hold a directory's lock while they run. On a ledger that a node has open, give the node's
URL: it does the work as a job beside its others, and an interrupted command calls the job off.
"""

import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from fastledger.cli.options import (
    LedgerCommand,
    LedgerTarget,
    command_options,
    ledger_options,
    password_option,
    rate_option,
    read_password,
)
from fastledger.cli.output import Output
from fastledger.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastledger.crypto.signing import SigningKey
    from fastledger.model.reports import RestoreReport

HOUR_MS = 3_600_000
node_key_option = click.option(
    "--node-key",
    "node_key_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The node.key of a proposer of this chain; without it the ledger opens for reading.",
)
from_height_option = click.option("--from-height", type=click.IntRange(min=0))
to_height_option = click.option("--to-height", type=click.IntRange(min=0), help="This height included.")


class LocalPath(click.ParamType[Path]):
    """A path on this machine; a node's URL is a usage error."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Returns the path, or fails with a usage error."""
        return LedgerTarget(str(value)).path


def _new_directory(metavar: str, name: str) -> "Callable[[Any], Any]":
    return click.argument(name, metavar=metavar, type=LocalPath())


@contextmanager
def _progress(output: Output, label: str) -> "Iterator[Callable[[str, int, int], None]]":
    with output.progress(label) as bar:
        yield lambda stage, done, total: bar.update(done, total, stage)


@click.command(cls=LedgerCommand)
@ledger_options
@_new_directory("BACKUP", "destination")
@rate_option
@click.option(
    "--include-node-key", is_flag=True, help="Copy node.key too; it is sealed only if it has a password."
)
@click.option("--include-snapshot", is_flag=True, help="Restores faster, takes more space.")
@click.option("--recheck", is_flag=True, help="Read again what the backup has already.")
@command_options
def backup(output: Output, target: LedgerTarget, destination: Path, rate: int | None, **choices: Any) -> None:
    """Write a backup of LEDGER to the directory BACKUP, or bring an older one there up to date.

    A node writes it on its own machine: BACKUP is an absolute path there, or a name in the backup directory of its
    configuration.
    """
    with target.open(replica=True) as ledger, _progress(output, "backup") as progress:
        report = ledger.backup(destination, rate_bytes_per_second=rate, progress=progress, **choices)
    output.answer(
        {
            "height": report.height,
            "block_id": report.block_id.hex(),
            "state_root": report.state_root.hex(),
            "files": report.files,
            "total_bytes": report.total_bytes,
            "copied_bytes": report.copied_bytes,
            "dropped_objects": report.dropped_objects,
        }
    )


@click.command()
@click.argument("source", metavar="BACKUP", type=click.Path(path_type=Path))
@_new_directory("LEDGER", "destination")
@click.option("--no-verify", is_flag=True, help="Check the backup's digests, head and state root alone.")
@command_options
def restore(output: Output, source: Path, destination: Path, no_verify: bool) -> None:
    """Make the new ledger directory LEDGER from BACKUP and verify it."""
    from fastledger.chain.restore import restore_backup

    with _progress(output, "restore") as progress:
        report = restore_backup(source, destination, verify=not no_verify, progress=progress)
    output.answer(_restored(report))


def _restored(report: "RestoreReport") -> dict[str, Any]:
    return {
        "chain_id": report.chain_id.hex(),
        "height": report.height,
        "block_id": report.block_id.hex(),
        "state_root": report.state_root.hex(),
        "transactions": report.transactions,
        "has_node_key": report.has_node_key,
        "verified": report.verified is not None,
    }


@click.command(cls=LedgerCommand)
@ledger_options
@click.option("--before-height", type=click.IntRange(min=0), help="Blocks below it may go.")
@click.option("--keep-blocks", type=click.IntRange(min=1), help="So many of the newest blocks stay.")
@rate_option
@command_options
def prune(output: Output, target: LedgerTarget, rate: int | None, **bounds: Any) -> None:
    """Give back the space of old blocks of LEDGER: whole segments, behind a snapshot that is kept."""
    with target.open(replica=True) as ledger, _progress(output, "prune") as progress:
        report = ledger.prune(**bounds, rate_bytes_per_second=rate, progress=progress)
    output.answer(asdict(report))


@click.command(cls=LedgerCommand)
@ledger_options
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--format", "form", type=click.Choice(("ndjson", "blocks")), default="ndjson", show_default=True
)
@from_height_option
@to_height_option
@click.option("--with-blobs", is_flag=True, help="Put the envelopes into the block file.")
@rate_option
@command_options
def export(
    output: Output,
    target: LedgerTarget,
    file: Path,
    form: str,
    with_blobs: bool,
    rate: int | None,
    **heights: Any,
) -> None:
    """Write transactions of LEDGER as lines of JSON, or its blocks as a file for `import`, to FILE (- for stdout).

    A node gives lines of JSON alone; for a file of its blocks, export from a backup of it that was restored.
    """
    from fastledger.chain.ledger import Ledger

    if form == "blocks" and target.is_node:
        raise click.UsageError("--format blocks works on a ledger directory, not on a node")
    if with_blobs and form != "blocks":
        raise InputError("lines of JSON hold no envelopes: --with-blobs is for --format blocks")
    with target.open(replica=True) as ledger, _progress(output, "export") as progress:
        options: dict[str, Any] = {"rate_bytes_per_second": rate, "progress": progress, **heights}
        with _opened(file) as out:
            report = (
                ledger.export_blocks(out, with_blobs=with_blobs, **options)
                if form == "blocks" and isinstance(ledger, Ledger)
                else ledger.export_ndjson(out, **options)
            )
    if str(file) != "-":
        output.answer(report._asdict())


@contextmanager
def _opened(target: Path) -> "Iterator[BinaryIO]":
    """Yields a new file, or standard output for ``-``."""
    if str(target) == "-":
        yield sys.stdout.buffer
        return
    with target.open("xb") as out:
        yield out


@click.command(name="import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_new_directory("LEDGER", "destination")
@node_key_option
@password_option
@command_options
def import_(
    output: Output,
    source: Path,
    destination: Path,
    node_key_path: Path | None,
    password_file: Path | None,
) -> None:
    """Make the new ledger directory LEDGER from a block file, checking every seal, signature and root."""
    from fastledger.chain.restore import import_blocks

    key, password = _node_key(node_key_path, password_file)
    file: BinaryIO
    with source.open("rb") as file, _progress(output, "import") as progress:
        report = import_blocks(
            file, destination, name=source.name, node_key=key, password=password, progress=progress
        )
    output.answer(_restored(report))


def _node_key(path: Path | None, password_file: Path | None) -> "tuple[SigningKey | None, str | None]":
    """Returns the key in a node.key file, and the password that it was sealed under, or None."""
    from fastledger.crypto.node_key import is_sealed, load_node_key

    if path is None:
        return None, None
    password = read_password(password_file) if is_sealed(path) else None
    return load_node_key(path, password), password


@click.group()
def snapshot() -> None:
    """The whole state at one height, in chunks that are checked one by one."""


@snapshot.command("create", cls=LedgerCommand)
@ledger_options
@_new_directory("SNAPSHOT", "destination")
@rate_option
@command_options
def create_snapshot(output: Output, target: LedgerTarget, destination: Path, rate: int | None) -> None:
    """Write the state of LEDGER to the new directory SNAPSHOT.

    A node writes it on its own machine: SNAPSHOT is an absolute path there, or a name in the backup directory of its
    configuration.
    """
    with target.open(replica=True) as ledger, _progress(output, "snapshot") as progress:
        report = ledger.snapshot(destination, rate_bytes_per_second=rate, progress=progress)
    output.answer(
        {name: value.hex() if isinstance(value, bytes) else value for name, value in asdict(report).items()}
    )


@snapshot.command("restore")
@click.argument("source", metavar="SNAPSHOT", type=click.Path(path_type=Path))
@_new_directory("LEDGER", "destination")
@click.option(
    "--genesis",
    "genesis_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="The chain's genesis document (genesis.cbor in a ledger directory).",
)
@node_key_option
@password_option
@command_options
def restore_from_snapshot(
    output: Output,
    source: Path,
    destination: Path,
    genesis_path: Path,
    node_key_path: Path | None,
    password_file: Path | None,
) -> None:
    """Make the new ledger directory LEDGER from SNAPSHOT: its state, and no earlier block or envelope."""
    from fastledger.chain.restore import restore_snapshot

    key, password = _node_key(node_key_path, password_file)
    with _progress(output, "restore") as progress:
        report = restore_snapshot(
            source, destination, genesis_path.read_bytes(), node_key=key, password=password, progress=progress
        )
    output.answer(_restored(report))


@click.command("collect-orphans", cls=LedgerCommand)
@ledger_options
@click.option(
    "--older-than-hours", type=click.IntRange(min=0), default=48, show_default=True, help="Younger ones stay."
)
@command_options
def collect_orphans(output: Output, target: LedgerTarget, older_than_hours: int) -> None:
    """Erase envelopes in LEDGER that no record names: of refused records and of uploads never submitted.

    The age counts from the first collection that found an envelope so.
    """
    from fastledger.chain.ledger import Ledger

    if target.is_node:
        raise click.UsageError(
            "this command works on a ledger directory, not on a node: it collects by itself"
        )
    with Ledger.open(target.path, replica=True) as ledger:
        collected = ledger.collect_orphans(older_than_hours * HOUR_MS)
    output.answer({"envelopes": collected.envelopes, "bytes": collected.byte_count})
