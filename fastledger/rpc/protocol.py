"""What goes over the wire, version 1: the structs and encodings that server and client share (SPEC-RPC-4).

=========================== ======== ============================================================ ===========
path                        method   what                                                         role
=========================== ======== ============================================================ ===========
``/v1/rpc``                 POST     JSON-RPC 2.0, single or batch                                 by method
``/v1/transactions``        POST     a CBOR sequence of COSE_Sign1 in, one verdict array out       submitter
``/v1/blobs``               POST     a CBOR sequence of byte strings (envelopes) in, digests out   submitter
``/v1/uploads``             POST     begins a resumable upload (tus 1.0: creation)                 submitter
``/v1/uploads/{id}``        HEAD,    offset, next bytes, abandon (tus 1.0: core, termination)      submitter
                            PATCH,
                            DELETE
``/v1/reads``               POST     a signed access.read in, the envelope out, audited            reader
``/v1/reads/{ticket}``      GET      the same envelope again or the rest of it (Range)             reader
``/v1/subscribe``           GET      WebSocket: JSON-RPC 2.0 both ways                             reader
``/health/live``            GET      200 while the process serves                                  none
``/health/ready``           GET      200 while it takes transactions, else 503                     none
``/metrics``                GET      Prometheus text                                               reader
``/openrpc.json``           GET      description of the JSON-RPC methods                           none
``/openapi.json``           GET      description of the paths                                      none
=========================== ======== ============================================================ ===========

In JSON, ids and hashes are lower-case hexadecimal and byte strings base64; times are integers, UTC milliseconds.
"""

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import cbor2
import msgspec

from fastledger.errors import Code, InputError
from fastledger.model.outcome import Outcome, Wait

if TYPE_CHECKING:
    from typing_extensions import Buffer

PROTOCOL_VERSION = 1
RPC_PATH = "/v1/rpc"
PROTOCOL_HEADER = "FastLedger-Protocol"
DIGEST_HEADER = "FastLedger-Digest"
TXID_HEADER = "FastLedger-Txid"
TICKET_HEADER = "FastLedger-Read-Ticket"

JSON_TYPE = "application/json"
CBOR_TYPE = "application/cbor"
CBOR_SEQUENCE_TYPE = "application/cbor-seq"
OCTETS_TYPE = "application/octet-stream"
TUS_VERSION = "1.0.0"
TUS_TYPE = "application/offset+octet-stream"

Hex8 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$", description="8 bytes, hexadecimal")]
Hex16 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$", description="16 bytes, hexadecimal")]
Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", description="32 bytes, hexadecimal")]
Hex33 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{66}$", description="33 bytes, hexadecimal")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]

Status = Literal["accepted", "ordered", "durable", "refused", "rejected"]


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The verdict on one transaction. ``code`` 0 is success; ``height`` is null while it stands in no block."""

    txid: Hex32
    status: Status
    code: Count = 0
    reason: str = "ok"
    height: Count | None = None
    index: Count | None = None
    duplicate: bool = False

    @classmethod
    def of(cls, outcome: Outcome, status: Status | None = None) -> "Verdict":
        """Returns an outcome in its wire form; ``status`` is given where it is not durable yet."""
        code = outcome.code
        return cls(
            outcome.txid.hex(),
            status or outcome.status,  # type: ignore[arg-type]
            int(code),
            code.slug,
            outcome.height,
            outcome.index,
            outcome.duplicate,
        )

    def outcome(self) -> Outcome:
        """Returns the outcome that :meth:`of` was given."""
        return Outcome(bytes.fromhex(self.txid), Code(self.code), self.height, self.index, self.duplicate)


class EntryView(msgspec.Struct, frozen=True):
    """One transaction of the chain. ``seq`` numbers all transactions of the chain from 0."""

    seq: Count
    txid: Hex32
    height: Count
    index: Count
    time_ms: Count
    kind: str
    signer: Hex33
    code: Count
    reason: str
    transaction: bytes


class BlockView(msgspec.Struct, frozen=True):
    """A block's header fields and counts, without its transactions."""

    height: Count
    block_id: Hex32
    previous_id: Hex32
    time_ms: Count
    first_seq: Count
    transactions: Count


# JSON-RPC 2.0.


class Request(msgspec.Struct, frozen=True):
    """A JSON-RPC 2.0 call; without an id it is a notification."""

    jsonrpc: Literal["2.0"]
    method: str
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: str | int | msgspec.UnsetType | None = msgspec.UNSET


class ErrorData(msgspec.Struct, frozen=True, omit_defaults=True):
    """The data of an error that a program needs beside its code; all but ``reason`` are set where they apply."""

    reason: str
    txid: str | None = None
    retry_after_ms: int | None = None
    path: str | None = None
    incident: str | None = None


class RpcError(msgspec.Struct, frozen=True):
    """An error: ``code`` is one of JSON-RPC's own (negative) or of :class:`fastledger.Code` (positive)."""

    code: int
    message: str
    data: ErrorData | None = None


PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603


# Long work of a node.

JobState = Literal["running", "done", "failed", "cancelled"]


class ProgressView(msgspec.Struct, frozen=True):
    """The progress of a stage of a job; ``total`` is 0 while it is not known."""

    stage: str
    done: Count
    total: Count


class JobView(msgspec.Struct, frozen=True):
    """A job; ``result`` is the report of one that is done, ``error`` why one failed."""

    job: str
    operation: str
    state: JobState
    started_ms: Count
    ended_ms: Count | None
    progress: ProgressView | None
    result: dict[str, Any] | None
    error: RpcError | None


class JobsView(msgspec.Struct, frozen=True):
    """The newest jobs, the newest first."""

    jobs: list[JobView]


# WebSocket notifications: these are their methods, and below their params.

EVENT = "subscription.event"
ENDED = "subscription.ended"


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event of a subscription: a block or a transaction. ``cursor`` resumes the subscription behind it."""

    cursor: Count
    block: BlockView | None = None
    entry: EntryView | None = None


class Events(msgspec.Struct, frozen=True):
    """A page of events of one subscription.

    ``next_cursor`` resumes behind all of it, events that were skipped included. ``caught_up`` tells that nothing
    older than the newest block is left.
    """

    subscription: str
    events: list[Event]
    next_cursor: Count
    caught_up: bool


class Filter(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Conditions on transactions; all that are set must hold."""

    kind: str | None = None
    signed_by: Hex16 | None = None
    subject: Hex16 | None = None


# The binary endpoint's answer: a column for each field, RFC 8746 typed arrays, little-endian.

_TAG_U16, _TAG_U32, _TAG_U64 = 69, 70, 71
_NOWHERE = 2**64 - 1
_DUPLICATE = 1
_LITTLE = sys.byteorder == "little"
_ITEM = {"H": _TAG_U16, "I": _TAG_U32, "Q": _TAG_U64}


def encode_outcomes(outcomes: Sequence[Outcome], *, wait: Wait) -> bytes:
    """Encodes outcomes as ``[1, wait, codes, heights, indexes, flags]`` in the order of the batch (SPEC-RPC-4).

    codes: u16, 0 is success. heights: u64, 2^64 - 1 where the transaction stands in no block. indexes: u32. flags: a
    byte each, bit 0 for a duplicate, whose verdict is the first one's.
    """
    codes = array("H", [outcome.code for outcome in outcomes])
    heights = array("Q", [_NOWHERE if outcome.height is None else outcome.height for outcome in outcomes])
    indexes = array("I", [outcome.index or 0 for outcome in outcomes])
    flags = bytes([outcome.duplicate for outcome in outcomes])
    return cbor2.dumps([PROTOCOL_VERSION, wait, _typed(codes), _typed(heights), _typed(indexes), flags])


def _typed(column: "array[int]") -> cbor2.CBORTag:
    if not _LITTLE:
        column.byteswap()
    return cbor2.CBORTag(_ITEM[column.typecode], column.tobytes())


def decode_outcomes(data: bytes, txids: Sequence[bytes]) -> tuple[Wait, list[Outcome]]:
    """Decodes the answer of :func:`encode_outcomes` for the transactions ``txids``.

    Returns ``wait`` and the outcomes. Raises ``InputError`` where the answer does not fit the transactions.
    """
    try:
        version, wait, codes, heights, indexes, flags = cbor2.loads(data)
        if version != PROTOCOL_VERSION or wait not in get_args(Wait):
            raise ValueError
        columns = zip(
            txids,
            _column(codes, "H"),
            _column(heights, "Q"),
            _column(indexes, "I"),
            flags,
            strict=True,
        )
        return wait, [_outcome(*row) for row in columns]
    except (ValueError, TypeError, KeyError, AttributeError, struct.error, cbor2.CBORDecodeError):
        raise InputError("the answer is not a verdict array of this batch") from None


def _column(typed: Any, typecode: str) -> "array[int]":
    column = array(typecode)
    if typed.tag != _ITEM[typecode]:
        raise ValueError
    column.frombytes(typed.value)
    if not _LITTLE:
        column.byteswap()
    return column


def _outcome(txid: bytes, code: int, height: int, index: int, flags: int) -> Outcome:
    nowhere = height == _NOWHERE
    return Outcome(
        txid, Code(code), None if nowhere else height, None if nowhere else index, bool(flags & _DUPLICATE)
    )


def encode_blobs(blobs: "Sequence[Buffer]") -> Iterator[bytes]:
    """Yields envelopes as a CBOR sequence of byte strings (RFC 8742), one piece each."""
    for blob in blobs:
        yield cbor2.dumps(bytes(blob))


_BYTES_HEAD = {0x58: 1, 0x59: 2, 0x5A: 4, 0x5B: 8}


def decode_blobs(data: bytes, *, count_max: int) -> list[bytes]:
    """Returns the byte strings of a CBOR sequence; raises ``InputError`` naming the byte where it breaks."""
    blobs: list[bytes] = []
    place = 0
    while place < len(data):
        head = data[place]
        width = 0 if 0x40 <= head <= 0x57 else _BYTES_HEAD.get(head, -1)
        begin = place + 1 + max(width, 0)
        size = head - 0x40 if width == 0 else int.from_bytes(data[place + 1 : begin], "big")
        if width < 0 or begin + size > len(data) or begin > len(data):
            raise InputError(f"no byte string at byte {place} of {len(data)}", code=Code.MALFORMED)
        if len(blobs) == count_max:
            raise InputError(f"more than {count_max} envelopes in a request", code=Code.OVERSIZED)
        blobs.append(data[begin : begin + size])
        place = begin + size
    return blobs
