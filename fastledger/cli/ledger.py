"""Commands over a ledger or a node: init, status, query, prove, verify-receipt, verify, reindex."""

from pathlib import Path
from typing import Any

import click

from fastledger.cli.derived.names import complete_code, complete_kind, complete_table_id, ids_in
from fastledger.cli.options import (
    ID16,
    TABLE_ID,
    TIME,
    TXID,
    LedgerCommand,
    LedgerTarget,
    command_options,
    keystore_option,
    ledger_options,
    password_option,
    rate_option,
    read_password,
)
from fastledger.cli.output import Exit, Output
from fastledger.errors import Code, InputError, LedgerError, ReceiptError
from fastledger.limits import QUERY_PAGE_DEFAULT, QUERY_PAGE_MAX

RECEIPT_BYTES_MAX = 1024 * 1024


@click.command(cls=LedgerCommand)
@ledger_options
@keystore_option
@password_option
@command_options
def init(output: Output, target: LedgerTarget, keystore_path: Path, password_file: Path | None) -> None:
    """Make a solo ledger in LEDGER, with a regulator and an endorsed organisation in a new keystore."""
    path = target.path
    password = read_password(password_file, confirm=True)
    output.answer(make_ledger(path, keystore_path, password), "A new ledger")


def make_ledger(ledger_path: Path, keystore_path: Path, password: str) -> dict[str, str]:
    """Makes a ledger and a keystore with the two wallets that start it; returns what was made, by name."""
    from fastledger.chain.ledger import Ledger
    from fastledger.crypto.keystore import Keystore
    from fastledger.subjects.identity import Role
    from fastledger.wallet.wallet import Wallet

    regulator, organisation = Wallet.create(), Wallet.create()
    keystore = Keystore.create(keystore_path, password)
    try:
        created = Ledger.create(ledger_path, authorities=[regulator.authority])
    except BaseException:
        keystore_path.unlink()  # made above, and empty
        raise
    with created as ledger:
        # The keys are safe before anything that they signed is.
        for name, wallet in (("regulator", regulator), ("organisation", organisation)):
            wallet.join(ledger.chain_id).save(keystore, name)
        keystore.save()
        outcomes = ledger.submit(
            [
                organisation.register(Role.ORGANISATION),
                regulator.endorse(organisation.identity, Role.ORGANISATION),
            ]
        )
        for outcome in outcomes:
            outcome.raise_for_status()
        return {
            "chain_id": ledger.chain_id.hex(),
            "ledger": str(ledger_path),
            "keystore": str(keystore_path),
            "regulator": regulator.identity.hex(),
            "organisation": organisation.identity.hex(),
        }


@click.command(cls=LedgerCommand)
@ledger_options
@command_options
def status(output: Output, target: LedgerTarget) -> None:
    """Show height, sizes and queues of LEDGER."""
    with target.open(replica=True) as ledger:
        answer = ledger.status()
    if not target.is_node:
        from fastledger.crypto import backend

        answer["backend"] = backend()
    output.answer(answer)


@click.command(cls=LedgerCommand)
@ledger_options
@click.option("--kind", shell_complete=complete_kind, help="Kind of transaction, such as record.put.")
@click.option("--signed-by", type=ID16, help="Identity id of who signed.")
@click.option("--subject", type=ID16, help="Identity id of whom it concerns.")
@click.option(
    "--id",
    "ids",
    type=TABLE_ID,
    multiple=True,
    metavar="TABLE=ID",
    shell_complete=complete_table_id,
    help="What it names, such as record=ID, folder=ID, consent=ID; several may be given.",
)
@click.option("--token", type=ID16, help="Blind index token.")
@click.option("--code", shell_complete=complete_code, help="Result code, by name (consent-missing) or number.")
@click.option("--from-height", type=int)
@click.option("--to-height", type=int)
@click.option("--from-time", type=TIME, help="Block time, such as 2026-01-31T08:30Z, or UTC milliseconds.")
@click.option("--to-time", type=TIME, help="Block time, the last one.")
@click.option("--newest-first", is_flag=True)
@click.option("--cursor", type=int, help="Go on from the cursor that the page before gave.")
@click.option("--limit", type=click.IntRange(1, QUERY_PAGE_MAX), default=QUERY_PAGE_DEFAULT)
@command_options
def query(
    output: Output, target: LedgerTarget, code: str | None, ids: tuple[tuple[str, bytes], ...], **conditions: Any
) -> None:
    """Find transactions in LEDGER that meet all the conditions."""
    from fastledger.model.query import Query

    with target.open(replica=True) as ledger:
        page = ledger.query(Query(code=None if code is None else parse_code(code), ids=dict(ids), **conditions))
        entries = [
            {
                "txid": entry.txid.hex(),
                "height": entry.height,
                "index": entry.index,
                "time_ms": entry.time_ms,
                "kind": entry.transaction.kind,
                "signer_key": entry.transaction.signer.hex(),
                "code": entry.code.slug,
                **ids_in(entry.transaction),
            }
            for entry in page
        ]
    output.answer({"entries": entries, "next_cursor": page.next_cursor})


def parse_code(text: str) -> Code:
    """Returns the result code of a name or number; raises ``InputError`` for another text."""
    try:
        return Code(int(text)) if text.isdigit() else Code.named(text.lower().replace("_", "-"))
    except ValueError:
        raise InputError("no such result code", code=Code.BAD_QUERY) from None


@click.command(cls=LedgerCommand)
@ledger_options
@click.argument("txid", type=TXID)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File for the receipt.")
@command_options
def prove(output: Output, target: LedgerTarget, txid: bytes, out: Path) -> None:
    """Write the receipt of transaction TXID: a transparent statement that verifies offline."""
    with target.open(replica=True) as ledger:
        statement = ledger.prove(txid)
    try:
        out.write_bytes(statement)
    except OSError as error:
        raise LedgerError(f"cannot write the receipt: {error.strerror}") from None
    output.answer({"txid": txid.hex(), "receipt": str(out), "bytes": len(statement)})


@click.command("verify-receipt")
@click.argument("receipt", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--genesis",
    "genesis_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="The chain's genesis document (genesis.cbor in a ledger directory).",
)
@command_options
def verify_receipt(output: Output, receipt: Path, genesis_path: Path) -> None:
    """Check a receipt file against a genesis document, without any ledger or network."""
    from fastledger.model.genesis import Genesis
    from fastledger.model.receipt import verify_statement

    genesis = Genesis.decode(_read(genesis_path))
    try:
        verified = verify_statement(_read(receipt), chain_id=genesis.chain_id, proposers=genesis.proposers)
    except InputError as error:
        output.answer({"valid": False, "reason": str(error)})
        raise click.exceptions.Exit(int(Exit.WRONG)) from None
    output.answer(
        {
            "valid": True,
            "txid": verified.transaction.txid.hex(),
            "kind": verified.transaction.kind,
            "code": verified.code.slug,
            "height": verified.height,
            "index": verified.index,
            "block_id": verified.block_id.hex(),
            "time_ms": verified.time_ms,
        }
    )


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(RECEIPT_BYTES_MAX + 1)
    if len(data) > RECEIPT_BYTES_MAX:
        raise ReceiptError(f"the file is longer than {RECEIPT_BYTES_MAX} bytes", code=Code.OVERSIZED)
    return data


@click.command(cls=LedgerCommand)
@ledger_options
@click.option(
    "--online/--offline",
    default=None,
    help="Let submissions go on meanwhile, or wait. A node goes on by default; a directory takes none.",
)
@rate_option
@command_options
def verify(output: Output, target: LedgerTarget, online: bool | None, rate: int | None) -> None:
    """Re-check every byte, signature, root and seal of LEDGER, and rebuild its index to compare."""
    with target.open(replica=True) as ledger, output.progress("verify") as bar:
        report = ledger.verify(
            lambda stage, done, total: bar.update(done, total, stage),
            online=target.is_node if online is None else online,
            rate_bytes_per_second=rate,
        )
    output.answer(
        {
            "ok": report.ok,
            "blocks": report.blocks,
            "transactions": report.transactions,
            "log_bytes": report.log_bytes,
            "blobs": report.blobs,
            "problems": report.problems,
        }
    )
    if not report.ok:
        raise click.exceptions.Exit(int(Exit.WRONG))


@click.command(cls=LedgerCommand)
@ledger_options
@command_options
def reindex(output: Output, target: LedgerTarget) -> None:
    """Throw the index of LEDGER away and rebuild it from the log."""
    from fastledger.chain.ledger import Ledger

    with Ledger.reindex(target.path, replica=True) as ledger:
        output.answer(
            {
                "height": ledger.height,
                "transactions": ledger.transaction_count,
                "replayed_blocks": ledger.replayed_blocks,
            }
        )
