"""Commands that write and read records: ingest, read."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from fastledger.cli.options import (
    ID16,
    LedgerCommand,
    Target,
    command_options,
    keystore_option,
    ledger_options,
    password_option,
    read_password,
)
from fastledger.cli.output import Exit, Output


@click.command(cls=LedgerCommand)
@ledger_options
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@keystore_option
@password_option
@click.option(
    "--as", "entry", default="organisation", show_default=True, help="Whose wallet keeps the records."
)
@command_options
def ingest(
    output: Output,
    target: Target,
    sources: tuple[Path, ...],
    keystore_path: Path,
    password_file: Path | None,
    entry: str,
) -> None:
    """Validate, seal, sign and commit FHIR SOURCES: bundles, directories, tar(.xz), NDJSON."""
    from fastledger.client.ingest import Custodian, Ingest
    from fastledger.crypto.keystore import Keystore
    from fastledger.gateway.sources import ReadingProgress, read_bundles
    from fastledger.wallet.wallet import Wallet

    keystore = Keystore.open(keystore_path, read_password(password_file))
    progress = ReadingProgress()
    with target.open() as ledger, output.progress("ingest") as bar:
        custodian = Custodian(
            ledger,
            Wallet.load(keystore, entry),
            new_wallet=lambda: Wallet.create(ledger.chain_id),
            entry=entry,
        )
        custodian.load(keystore)

        def save_keys() -> None:
            custodian.save(keystore)
            keystore.save()

        run = Ingest(ledger, custodian, before_submit=save_keys)
        for bundle in read_bundles(sources, progress):
            run.add(bundle)
            bar.update(progress.bytes_read, progress.bytes_total)
        run.flush()
    report = asdict(run.report)
    report["refusals"] = [list(refusal) for refusal in run.report.refusals]
    output.answer(report)
    if run.report.refused or run.report.unreadable or run.report.failures:
        raise click.exceptions.Exit(int(Exit.WRONG))


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
    target: Target,
    record: bytes,
    keystore_path: Path,
    password_file: Path | None,
    entry: str,
    purpose: str,
) -> None:
    """Read RECORD through the audit and print its content."""
    from fastledger.crypto.keystore import Keystore
    from fastledger.errors import Code, InputError
    from fastledger.subjects.consent import Purpose
    from fastledger.subjects.record import RECORDS
    from fastledger.wallet.wallet import Wallet

    if purpose not in set(Purpose):
        raise InputError("no such purpose of use", code=Code.BAD_BODY)
    wallet = Wallet.load(Keystore.open(keystore_path, read_password(password_file)), entry)
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
