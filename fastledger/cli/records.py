"""Commands that write and read records: ingest, matches, read."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastledger.cli.options import (
    ID16,
    LedgerCommand,
    LedgerTarget,
    command_options,
    keystore_option,
    ledger_options,
    password_option,
    read_password,
)
from fastledger.cli.output import Exit, Output

if TYPE_CHECKING:
    from fastledger.client.api import LedgerApi
    from fastledger.client.ingest import Kept
    from fastledger.client.ingest.custodian import Custodian
    from fastledger.crypto.keystore import Keystore
    from fastledger.gateway.fhir_source import Source


_source_option = click.option(
    "--source",
    "source_base",
    required=True,
    envvar="FASTLEDGER_SOURCE",
    metavar="URL",
    help="Base URL of the system that the data comes from: its ids are those of no other.",
)
_listed_option = click.option(
    "--sources-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML list of sources with their practitioners and identifier systems.",
)
_entry_option = click.option(
    "--as", "entry", default="organisation", show_default=True, help="Whose wallet keeps the records."
)


@click.command(cls=LedgerCommand)
@ledger_options
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@_source_option
@_listed_option
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a line of JSON for everything that is not taken as it came.",
)
@click.option(
    "--map",
    "kept_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a line of JSON for every record: which resource it is of.",
)
@keystore_option
@password_option
@_entry_option
@command_options
def ingest(
    output: Output,
    target: LedgerTarget,
    sources: tuple[Path, ...],
    source_base: str,
    sources_file: Path | None,
    report_path: Path | None,
    kept_path: Path | None,
    keystore_path: Path,
    password_file: Path | None,
    entry: str,
) -> None:
    """Validate, seal, sign and commit FHIR SOURCES: bundles, directories, tar(.xz), NDJSON.

    The same resource again adds nothing, a changed one amends its record. What cannot be told whose it is is parked:
    sealed in a folder of the organisation's own.
    """
    from fastledger.client.ingest import Ingest, ResourceMap, map_path
    from fastledger.gateway.sources import Passed, ReadingProgress, read_bundles

    source = _source_of(source_base, sources_file)
    keystore = _keystore(keystore_path, password_file)
    progress, passed = ReadingProgress(), Passed()
    with (
        target.open() as ledger,
        _lines_to(report_path) as tell,
        _lines_to(kept_path) as tell_kept,
        output.progress("ingest") as bar,
    ):
        custodian = _custodian(ledger, keystore, entry)

        def save_keys() -> None:
            custodian.save(keystore)
            keystore.save()

        # The map is blind under a key that must not be lost with it.
        save_keys()
        with ResourceMap(map_path(keystore_path, entry), custodian.map_secret, ledger.chain_id) as resources:
            run = Ingest(
                ledger,
                custodian,
                source=source,
                resources=resources,
                before_submit=save_keys,
                on_remark=lambda remark: tell(asdict(remark)),
                on_kept=lambda kept: tell_kept(_shown_kept(kept)),
            )
            for bundle in read_bundles(sources, progress, passed):
                run.add(bundle)
                bar.update(progress.bytes_read, progress.bytes_total)
            run.flush()
    report = asdict(run.report) | asdict(passed)
    report["refusals"] = [list(refusal) for refusal in run.report.refusals]
    output.answer(report)
    if not run.report.is_clean:
        raise click.exceptions.Exit(int(Exit.WRONG))


@click.group()
def matches() -> None:
    """Say which names of sources are one person, and list what was said."""


@matches.command("add", cls=LedgerCommand)
@ledger_options
@_source_option
@_listed_option
@click.option(
    "--patient", metavar="REFERENCE", help="A patient of the source: Patient/<id>, or the URL of one."
)
@click.option(
    "--identifier", metavar="SYSTEM|VALUE", help="An identifier by which the source refers to a patient."
)
@click.option(
    "--same-as", required=True, metavar="REFERENCE", help="Who that is: Patient/<id>, or the URL of one."
)
@click.option(
    "--same-source", metavar="URL", help="The source that names --same-as, where it is another one."
)
@click.option("--by", required=True, help="Who decided; it is sealed into the person's own folder.")
@keystore_option
@password_option
@_entry_option
@command_options
def add_match(
    output: Output,
    target: LedgerTarget,
    source_base: str,
    sources_file: Path | None,
    patient: str | None,
    identifier: str | None,
    same_as: str,
    same_source: str | None,
    by: str,
    keystore_path: Path,
    password_file: Path | None,
    entry: str,
) -> None:
    """Match a patient or an identifier of a source to a person. What was ingested before stays where it is."""
    from fastledger.client.ingest.matching import match_identifier, match_patient
    from fastledger.gateway.fhir_source import split_identifier

    if (patient is None) == (identifier is None):
        raise click.UsageError("name either --patient or --identifier")
    source = _source_of(source_base, sources_file)
    known = (source if same_source is None else _source_of(same_source, sources_file), same_as)
    keystore = _keystore(keystore_path, password_file)
    with target.open() as ledger:
        custodian = _custodian(ledger, keystore, entry)

        def save() -> None:
            custodian.save(keystore)
            keystore.save()

        if patient is not None:
            made = match_patient(ledger, custodian, name=(source, patient), same_as=known, by=by, save=save)
        else:
            made = match_identifier(
                ledger,
                custodian,
                source=source,
                identifier=split_identifier(identifier or ""),
                same_as=known,
                by=by,
                save=save,
            )
    output.answer({"record": made.record.hex(), "time_ms": made.time_ms})


@matches.command("list")
@keystore_option
@password_option
@_entry_option
@command_options
def list_matches(output: Output, keystore_path: Path, password_file: Path | None, entry: str) -> None:
    """List the matches that the keystore holds, the newest last."""
    from fastledger.client.ingest.custodian import load_matches

    rows = [
        {**asdict(item), "record": item.record.hex()}
        for item in load_matches(_keystore(keystore_path, password_file), entry)
    ]
    output.answer({"matches": rows})


def _keystore(path: Path, password_file: Path | None) -> "Keystore":
    from fastledger.crypto.keystore import Keystore

    return Keystore.open(path, read_password(password_file))


def _custodian(ledger: "LedgerApi", keystore: "Keystore", entry: str) -> "Custodian":
    """The custodian whose wallets the keystore holds."""
    from fastledger.client.ingest.custodian import Custodian
    from fastledger.wallet.wallet import Wallet

    custodian = Custodian(
        ledger,
        Wallet.load(keystore, entry),
        new_wallet=lambda: Wallet.create(ledger.chain_id),
        entry=entry,
    )
    custodian.load(keystore)
    return custodian


def _source_of(base: str, listed: Path | None) -> "Source":
    """A source by its base URL, with what the list says that it may do."""
    from fastledger.gateway.fhir_source import Source, read_sources

    source = Source.named(base)
    return source if listed is None else read_sources(listed).get(source.base, source)


@contextmanager
def _lines_to(path: Path | None) -> Iterator[Callable[[Any], None]]:
    """Yields what writes lines of JSON to a file that only its owner reads; to nowhere without a path."""
    if path is None:
        yield lambda line: None
        return
    import msgspec

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:

        def write(line: Any) -> None:
            file.write(msgspec.json.encode(line) + b"\n")

        yield write


def _shown_kept(kept: "Kept") -> dict[str, Any]:
    return {
        "origin": kept.origin,
        "resource_type": kept.resource_type,
        "resource_id": kept.resource_id,
        "record": kept.record.hex(),
        "version": kept.version,
        "folder": kept.folder.hex(),
        "category": kept.category,
    }


@click.command(cls=LedgerCommand)
@ledger_options
@click.argument("record", type=ID16)
@keystore_option
@password_option
@click.option("--as", "entry", required=True, help="Name of the wallet that reads.")
@click.option("--purpose", required=True, help="Purpose of use: TREAT, HRESCH, PATRQT …")
@command_options
def read(
    output: Output,
    target: LedgerTarget,
    record: bytes,
    keystore_path: Path,
    password_file: Path | None,
    entry: str,
    purpose: str,
) -> None:
    """Read RECORD through the audit and print its content."""
    from fastledger.errors import Code, InputError
    from fastledger.subjects.consent import Purpose
    from fastledger.subjects.record import RECORDS
    from fastledger.wallet.wallet import Wallet

    if purpose not in set(Purpose):
        raise InputError("no such purpose of use", code=Code.BAD_BODY)
    wallet = Wallet.load(_keystore(keystore_path, password_file), entry)
    with target.open() as ledger:
        access = wallet.access(record, Purpose(purpose))
        envelope = ledger.read(access)
        state = ledger.entity(RECORDS, record)
        content = wallet.open_record(envelope, folder=state.folder, record=record, version=state.version)
    if output.as_json:
        output.answer({"txid": access.txid.hex(), "version": state.version, **_shown(content)})
    else:
        sys.stdout.buffer.write(content + b"\n")


def _shown(content: bytes) -> dict[str, str]:
    """Returns a record's content as text, or in hexadecimal where another client stored something else."""
    try:
        return {"content": content.decode()}
    except UnicodeDecodeError:
        return {"content_hex": content.hex()}
