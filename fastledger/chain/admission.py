"""The border: from submitted bytes to transactions that may enter a block (SPEC-ADM-1..3).

Runs in the submitter's thread. The checks go from cheap to dear; each transaction has its own verdict and a bad one
costs the others nothing.
"""

import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from fastledger._native.ecdsa import HINTS_FULL, HINTS_PARITY, default_threads
from fastledger._native.scan import ScanBatch, scan_many, split
from fastledger.crypto import verify_batch
from fastledger.errors import Code, InputError
from fastledger.limits import BATCH_BYTES_MAX, BATCH_TRANSACTIONS_MAX
from fastledger.model.block import Block
from fastledger.stage_times import StageTimes
from fastledger.state.registry import Rules
from fastledger.state.transition import all_valid, validity_code
from fastledger.state.view import Writes

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Fewest transactions for which a view of the index of their own is worth opening.
_READ_AHEAD_MIN = 64
class Prefetched(NamedTuple):
    """The index's answers for a batch, read before its turn: state values, and numbers of known transactions.

    It holds while ``epoch`` is the store's: no overlay that was there when it was read has been let go of since.
    """

    epoch: int
    states: Writes
    seqs: dict[bytes, int]


# State keys and transaction ids of a batch in, what the index holds of them out.
ReadAhead: TypeAlias = Callable[[Sequence[bytes], Sequence[bytes]], Prefetched | None]


LOCAL = b""


@dataclass(slots=True)
class Batch:
    """A scanned batch, and the findings of :func:`admit`: ``codes[i]`` is 0 where transaction i may enter a block.

    The batch is judged for the moment ``time_ms``, and ``in_block`` where its transactions stand in a block already.
    ``bodies[i]`` is the typed body of transaction i, where it has one, and ``rule_set`` the number of the rule set
    that all of them are of, 0 where nobody has looked. ``hints`` are the column of verification hints (1 + n × 33
    bytes), where they were asked for. ``ahead`` is the index's answers for the batch, where they were read.
    """

    scan: ScanBatch
    byte_count: int
    time_ms: int
    in_block: bool = False
    codes: list[int] = field(init=False)
    bodies: list[Any] = field(init=False)
    hints: bytes = b""
    ahead: Prefetched | None = None
    rule_set: int = 0
    txids: list[bytes] = field(init=False)
    signers: list[bytes] = field(init=False)
    windows: tuple[int, int, int, int] | None = field(init=False)

    def __post_init__(self) -> None:
        """Cuts the ids (32 bytes) and keys (33) once, for every stage: zeros where the form is broken."""
        ids, keys = self.scan.txids, self.scan.signers
        self.txids = [ids[i : i + 32] for i in range(0, len(ids), 32)]
        self.signers = [keys[i : i + 33] for i in range(0, len(keys), 33)]
        self.windows = self.scan.windows()
        self.codes = list(self.scan.statuses)
        self.bodies = [None] * len(self.codes)

    @classmethod
    def submitted(cls, data: "Buffer", offsets: "Buffer", now_ms: int) -> "Batch":
        """Scans transactions that somebody sent at ``now_ms``: transaction i is ``data[offsets[i]:offsets[i + 1]]``.

        Raises ``InputError`` with ``OVERSIZED`` for a batch over the limits, as a whole.
        """
        count, byte_count = memoryview(offsets).nbytes // 8 - 1, memoryview(data).nbytes
        if count > BATCH_TRANSACTIONS_MAX:
            raise InputError(
                f"{count} transactions in a batch, at most {BATCH_TRANSACTIONS_MAX}", code=Code.OVERSIZED
            )
        if byte_count > BATCH_BYTES_MAX:
            raise InputError(
                f"{byte_count} bytes in a batch, at most {BATCH_BYTES_MAX}", code=Code.OVERSIZED
            )
        return cls(scan_many(data, offsets), byte_count, now_ms)

    @classmethod
    def of_block(cls, block: Block) -> "Batch":
        """Scans the transactions of a block, judged for the block's own time.

        Their lengths have to fit its bytes, as :meth:`Block.decode` checks; else ``ValueError``.
        """
        scan = scan_many(block.transactions, array("Q", block.offsets))
        return cls(scan, len(block.transactions), block.body.time_ms, in_block=True)


class Pending(NamedTuple):
    """One admitted transaction: its wire form, its 33-byte verification hint, its typed body, and its source.

    ``body`` is of the rule set under which it came, or None; it counts only where its type is that of its kind under
    the set in force.
    ``source`` is empty for what this node's own users submit, and otherwise the name of the organisation that sent
    it.
    """

    txid: bytes
    encoded: bytes
    hint: bytes
    signer: bytes
    body: Any
    issued_ms: int
    expires_ms: int
    source: bytes = LOCAL


class Trust(NamedTuple):
    """What of a batch needs no judgement, since this node has done it, and help with the rest.

    ``contents``: the transactions are known to be of the chain, so that neither chain nor time of them is looked at.
    ``signatures``: none has to be verified. ``known``: those of the transactions at these indexes need not be; each
    has its 33-byte hint. ``hints`` are a column of hints that came with the batch, well-formed or not, right or
    wrong: wrong ones cost time and change no verdict.
    """

    contents: bool = False
    signatures: bool = False
    known: Mapping[int, bytes] = MappingProxyType({})
    hints: bytes = b""


NOTHING = Trust()
OWN_LOG = Trust(signatures=True)


class CpuShare:
    """Divides the CPUs among batches that are verified at the same time.

    A batch that is alone takes them all; beside others it takes its part, and leaves the executor room to run.
    """

    def __init__(self, threads: int | None = None, times: StageTimes | None = None) -> None:
        """Takes the number of threads to divide, None for one for each CPU; ``times`` get the stage *verify*."""
        self._lock = threading.Lock()
        self._batches = 0
        self._threads = threads or default_threads()
        self._times = times or StageTimes()

    @contextmanager
    def threads(self) -> Iterator[int]:
        """Yields how many threads a batch that begins now should verify on, and counts the batch until the end."""
        with self._lock:
            self._batches += 1
            share = max(1, self._threads // self._batches)
        try:
            with self._times.stage("verify"):
                yield share
        finally:
            with self._lock:
                self._batches -= 1


def lay_out(encoded: Sequence[bytes]) -> tuple[bytes, "array[int]"]:
    """Returns a batch in one buffer, and the n + 1 offsets of its transactions."""
    return b"".join(encoded), array("Q", accumulate(map(len, encoded), initial=0))


def cut_sequence(data: "Buffer") -> memoryview:
    """Returns the n + 1 offsets of the transactions in a CBOR sequence (RFC 8742).

    Raises ``InputError`` naming the byte where the sequence breaks: no transaction can be found behind it.
    """
    offsets, status, offset = split(data)
    if status:
        raise InputError(f"the sequence breaks at byte {offset}", code=Code(status))
    return offsets


def admit(
    batch: Batch,
    rules: Rules | None,
    *,
    chain_id: bytes,
    trust: Trust = NOTHING,
    missing_blobs: Callable[[Sequence[bytes]], Sequence[bytes]] | None = None,
    keep_hints: bool = False,
    cpu_share: CpuShare | None = None,
) -> Batch:
    """Judges every transaction of a batch that has no code yet, and returns the batch.

    All ways into a block lead through here: for transactions that are submitted, for a block of others, and for one
    of the node's own log. ``rules`` is the rule set of the block's height, or of the next block's; None where it is
    not known yet, so that bodies are decoded at execution. ``missing_blobs`` returns those of the given envelope
    digests that the blob store lacks; None: no envelope is looked for. ``keep_hints`` leaves the verification hints in
    the batch, for a caller that passes the transactions on. Without ``cpu_share`` all CPUs verify.
    """
    if not trust.contents:
        _check_contents(batch, chain_id)
    if rules is not None:
        fit_bodies(batch, rules)
        if missing_blobs is not None:
            _check_blobs(batch, rules, missing_blobs)
    if trust.signatures:
        batch.hints = trust.hints
        return batch
    with nullcontext() if cpu_share is None else cpu_share.threads() as threads:
        check_signatures(batch, threads, keep_hints=keep_hints, trust=trust)
    return batch


def look_ahead(batch: Batch, rules: Rules, read_ahead: ReadAhead) -> None:
    """Reads from the index here, where batches are admitted side by side, what their one executor will need."""
    if len(batch.codes) >= _READ_AHEAD_MIN:
        batch.ahead = read_ahead(rules.keys_read(batch.bodies), batch.txids)


def _check_contents(batch: Batch, chain_id: bytes) -> None:
    """Checks chain and window of every transaction whose form is right: what no rule set has to do with."""
    scan, codes, now_ms = batch.scan, batch.codes, batch.time_ms
    on_chain = scan.matches_chain(chain_id)
    valid = all_valid(batch.windows, now_ms)
    for index, code in enumerate(codes):
        if code:
            continue
        if not on_chain[index]:
            codes[index] = Code.WRONG_CHAIN
            continue
        if not valid:
            codes[index] = validity_code(scan.issued_ms(index), scan.expires_ms(index), now_ms)


def fit_bodies(batch: Batch, rules: Rules) -> None:
    """Gives every transaction without an error its body under the rule set of its height (SPEC-RULE-10).

    A body that was decoded under another rule set stays where its type is that of its kind under ``rules`` too, and
    is decoded again where it is not: what it was taken for first must not decide what it means.
    """
    if batch.rule_set == rules.number:
        return
    decode = rules.decode_in_block if batch.in_block else rules.decode_body
    scan, codes, bodies, by_body = batch.scan, batch.codes, batch.bodies, rules.by_body
    for index, code in enumerate(codes):
        if code or type(bodies[index]) in by_body:
            continue
        try:
            bodies[index] = decode(scan.kind(index), scan.body_as_msgpack(index))
        except InputError as error:
            codes[index] = error.code
    batch.rule_set = rules.number


def _check_blobs(
    batch: Batch, rules: Rules, missing_blobs: Callable[[Sequence[bytes]], Sequence[bytes]]
) -> None:
    """Refuses a record whose envelope is not stored: else it would be on the chain and nowhere."""
    named = rules.envelopes(batch.bodies)
    if not named:
        return
    missing = set(missing_blobs([digest for _, digest in named]))
    for index, digest in named:
        if digest in missing:
            batch.codes[index] = Code.BLOB_MISSING


HINT_BYTES = 33


def check_signatures(
    batch: Batch, threads: int | None = None, *, keep_hints: bool = False, trust: Trust = NOTHING
) -> None:
    """Verifies the signatures of all transactions without an error, but for those in ``trust``, in one native call.

    With ``keep_hints`` the right hints are left in the batch, zeros where a transaction is refused.
    """
    scan, codes, known = batch.scan, batch.codes, trust.known
    wanted = [index for index, code in enumerate(codes) if not code and index not in known]
    columns = _columns(scan, wanted, len(codes))
    hints = trust.hints if are_hints(trust.hints, len(codes)) else None
    if hints is not None and len(wanted) < len(codes):
        hints = _select_hints(hints, wanted, len(codes))
    valid = found = b""
    if wanted and keep_hints:
        valid, found = verify_batch(*columns, hints=hints, return_hints=True, threads=threads)
    elif wanted:
        valid = verify_batch(*columns, hints=hints, threads=threads)
    for index, verdict in zip(wanted, valid, strict=True):
        if not verdict:
            codes[index] = Code.BAD_SIGNATURE
    if keep_hints:
        batch.hints = found if len(wanted) == len(codes) else _merge_hints(wanted, found, known, len(codes))


def _columns(scan: ScanBatch, wanted: Sequence[int], count: int) -> tuple[bytes, bytes, bytes]:
    """Returns digests (n x 32 bytes), signatures (n x 64) and keys (n x 33) of the transactions at ``wanted``."""
    txids, signatures, signers = scan.txids, scan.signatures, scan.signers
    if len(wanted) == count:
        return txids, signatures, signers
    return (
        b"".join(txids[32 * i : 32 * i + 32] for i in wanted),
        b"".join(signatures[64 * i : 64 * i + 64] for i in wanted),
        b"".join(signers[33 * i : 33 * i + 33] for i in wanted),
    )


def _select_hints(hints: bytes, wanted: Sequence[int], count: int) -> bytes:
    size = (len(hints) - 1) // count
    return hints[:1] + b"".join(hints[1 + size * i : 1 + size * (i + 1)] for i in wanted)


def _merge_hints(wanted: Sequence[int], found: bytes, known: Mapping[int, bytes], count: int) -> bytes:
    parts = [bytes(HINT_BYTES)] * count
    for index, hint in known.items():
        parts[index] = hint
    for place, index in enumerate(wanted):
        parts[index] = found[1 + HINT_BYTES * place : 1 + HINT_BYTES * (place + 1)]
    return bytes((HINTS_FULL,)) + b"".join(parts) if count else b""


def are_hints(hints: bytes, count: int) -> bool:
    """Whether ``hints`` are a column of hints, right or wrong, for ``count`` transactions (SPEC-SIG-6)."""
    if not hints or not count:
        return False
    return (hints[0], len(hints)) in ((HINTS_FULL, 1 + HINT_BYTES * count), (HINTS_PARITY, 1 + count))


def hint_at(hints: bytes, index: int) -> bytes:
    """Returns the hint (33 bytes) of transaction ``index`` in a full column."""
    return hints[1 + HINT_BYTES * index : 1 + HINT_BYTES * (index + 1)]
