"""Commands over streams of transactions: follow, submit."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import msgspec

from fastledger.cli.derived.names import complete_kind
from fastledger.cli.options import ID16, LedgerCommand, LedgerTarget, command_options, ledger_options
from fastledger.cli.output import Exit, Output
from fastledger.errors import Code, InputError
from fastledger.limits import QUERY_PAGE_MAX

if TYPE_CHECKING:
    from fastledger.model.following import FollowEvent
    from fastledger.model.query import Entry

FILE_BYTES_MAX = 1024 * 1024 * 1024
BATCH_TRANSACTIONS = 1_000
TOPICS = ("transactions", "blocks", "alerts")


@click.command(cls=LedgerCommand)
@ledger_options
@click.option("--topic", type=click.Choice(TOPICS), default="transactions", show_default=True)
@click.option(
    "--cursor", type=click.IntRange(min=0), help="Go on behind the event that had it; 0: from the start."
)
@click.option("--kind", shell_complete=complete_kind, help="Kind of transaction, such as record.put.")
@click.option("--signed-by", type=ID16, help="Identity id of who signed.")
@click.option("--subject", type=ID16, help="Identity id of whom it concerns.")
@click.option("--until-now", is_flag=True, help="End where the chain ends instead of waiting for more.")
@command_options
def follow(
    output: Output, target: LedgerTarget, topic: str, cursor: int | None, until_now: bool, **conditions: Any
) -> None:
    """Print what happens in LEDGER, one JSON object a line, each with the cursor that resumes behind it.

    A node is followed until the command is interrupted, a directory until its end.
    """
    with target.open() as ledger:
        for page in ledger.follow_pages(topic, cursor=cursor, **conditions):  # type: ignore[arg-type]
            for event in page.events:
                click.echo(msgspec.json.encode(_line(event)).decode())
            # To a directory nothing is added while this process holds it.
            if page.caught_up and (until_now or not target.is_node):
                return


def _line(event: "FollowEvent") -> dict[str, Any]:
    if event.entry is not None:
        return _entry_line(event.entry)
    block = event.block
    if block is None:
        return {"cursor": event.cursor}
    return {
        "cursor": event.cursor,
        "height": block.height,
        "block_id": block.block_id.hex(),
        "previous_id": block.previous_id.hex(),
        "time_ms": block.time_ms,
        "first_seq": block.first_seq,
        "transactions": block.transaction_count,
    }


def _entry_line(entry: "Entry") -> dict[str, Any]:
    return {
        "cursor": entry.seq + 1,
        "seq": entry.seq,
        "txid": entry.txid.hex(),
        "height": entry.height,
        "index": entry.index,
        "time_ms": entry.time_ms,
        "kind": entry.transaction.kind,
        "signer_key": entry.transaction.signer.hex(),
        "code": entry.code.slug,
    }


@click.command(cls=LedgerCommand)
@ledger_options
@click.argument("files", nargs=-1, required=True, type=click.File("rb"))
@command_options
def submit(output: Output, target: LedgerTarget, files: tuple[BinaryIO, ...]) -> None:
    """Submit signed transactions from FILES, each a CBOR sequence; - is standard input.

    Sending them again is harmless: each enters once.
    """
    from fastledger.client.submission import cut_sequence

    counts: Counter[str] = Counter()
    problems: list[dict[str, Any]] = []
    with target.open() as ledger:
        for batch in _batches(files, cut_sequence):
            for outcome in ledger.submit(batch):
                counts["transactions"] += 1
                counts[outcome.status] += 1
                counts["duplicates"] += outcome.duplicate
                if not outcome.ok:
                    problems.append({"txid": outcome.txid.hex(), "code": outcome.code.slug})
    names = ("transactions", "durable", "refused", "rejected", "duplicates")
    output.answer({**{name: counts[name] for name in names}, "problems": problems[:QUERY_PAGE_MAX]})
    if problems:
        raise click.exceptions.Exit(int(Exit.WRONG))


def _batches(files: Iterable[BinaryIO], cut: Any) -> Iterator[list[bytes]]:
    for file in files:
        data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise InputError(f"a file is longer than {FILE_BYTES_MAX} bytes", code=Code.OVERSIZED)
        yield from cut(data, transactions_max=BATCH_TRANSACTIONS)
