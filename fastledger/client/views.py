"""What a node answers in JSON, as the objects that the engine itself returns; anything else is a typed error."""


import msgspec

from fastledger.errors import Code, InputError, UnreachableError
from fastledger.model.following import BlockSummary
from fastledger.model.genesis import Genesis
from fastledger.model.query import Entry
from fastledger.rpc.protocol import BlockView, EntryView


def bad_answer(what: str) -> UnreachableError:
    """Returns the error for an answer of the node that is well-formed and cannot be right; ``what`` names it."""
    return UnreachableError(f"the node's {what} is not one", transient=False)


def entry_of(view: EntryView, txid: bytes | None = None) -> Entry:
    """The transaction of a view; its id is computed anew, and compared where ``txid`` was asked for."""
    try:
        entry = Entry(view.seq, view.height, view.index, view.time_ms, Code(view.code), view.transaction)
        if txid is not None and entry.txid != txid:
            raise bad_answer("transaction")
    except (InputError, ValueError):
        raise bad_answer("transaction") from None
    return entry


def block_of(view: BlockView) -> BlockSummary:
    """The block of a view."""
    return BlockSummary(
        view.height,
        hex_bytes(view.block_id, 32),
        hex_bytes(view.previous_id, 32),
        view.time_ms,
        view.first_seq,
        view.transactions,
    )


def genesis_of(encoded: bytes, chain_id: bytes | None = None) -> Genesis:
    """The genesis document, compared with the chain that is asked for."""
    try:
        genesis = Genesis.decode(encoded)
    except InputError:
        raise bad_answer("genesis document") from None
    if chain_id is not None and genesis.chain_id != chain_id:
        raise InputError(
            f"the node serves chain {genesis.chain_id.hex()}, not {chain_id.hex()}", code=Code.WRONG_CHAIN
        )
    return genesis


def hex_bytes(text: str, size: int) -> bytes:
    """An id or hash of ``size`` bytes."""
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != size:
        raise bad_answer("id")
    return data


class NodeInfo(msgspec.Struct, frozen=True):
    """The part of a node's ``ledger.info`` that a client reads, whatever release answers."""

    protocol: int
    genesis: bytes
    height: int
    head: str
    transactions: int
