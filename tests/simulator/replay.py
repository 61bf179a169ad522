"""The chain executed again from nothing, without the code under test: no executor, no store, no layers, no batches.

Shared with the engine are the byte formats, the rules of ``state.transition`` and the Merkle trees; links, work,
signatures (libsecp256k1 through coincurve, one at a time), windows, duplicates and roots are judged here anew.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec
from coincurve import PublicKey
from coincurve.ecdsa import cdata_to_der, deserialize_compact

from fastledger.crypto.merkle import HistoryTree, leaf_hashes, merkle_root
from fastledger.errors import Code
from fastledger.model.block import Block, result_entries
from fastledger.model.body import Body
from fastledger.model.genesis import Genesis
from fastledger.model.transaction import Transaction, signing_input
from fastledger.state.context import Context
from fastledger.state.registry import BlockOpening, NotInForce, Rules
from fastledger.state.transition import apply
from fastledger.state.view import View, next_state_root
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.chain import RULE_SETS
from fastledger.subjects.consent import ConsentGrant
from fastledger.subjects.folder import FolderOpen
from fastledger.subjects.identity import IdentityRegister
from fastledger.subjects.record import RecordPut
from simulator.workload import Claim


class ReplayError(Exception):
    """The chain is not what it says."""


@lru_cache(maxsize=20_000)
def signed(txid: bytes, signature: bytes, signer: bytes) -> bool:
    """Whether libsecp256k1 itself takes the signature."""
    try:
        return bool(PublicKey(signer).verify(cdata_to_der(deserialize_compact(signature)), txid, None))
    except ValueError:
        return False


@lru_cache(maxsize=20_000)
def decoded(encoded: bytes) -> Transaction:
    """The transaction of some bytes, its id computed by hashlib."""
    transaction = Transaction.decode(encoded)
    head = 4 + 7 + 33 + 1  # up to the payload's own head
    body = encoded[head:-66]
    length = 1 if body[0] & 0x1F < 24 else 1 + (1 << ((body[0] & 0x1F) - 24))
    txid = hashlib.sha256(signing_input(transaction.signer, body[length:])).digest()
    if txid != transaction.txid:
        raise ReplayError(f"the id of {transaction.txid.hex()} is {txid.hex()}")
    return transaction


def body_under(rules: Rules, transaction: Transaction) -> Body | NotInForce:
    """The body as a rule set reads it, from the map in the transaction."""
    kind = rules.by_name.get(transaction.kind)
    if kind is None:
        return NotInForce(transaction.kind)
    try:
        return msgspec.convert(transaction.body_map, kind.body)
    except msgspec.ValidationError:
        raise ReplayError(f"a body that is none of {transaction.kind}") from None


def claim_of(transaction: Transaction) -> list[Claim]:
    """What a transaction that succeeded has taken for itself alone."""
    body = transaction.body
    match body:
        case IdentityRegister():
            return [("identity", transaction.signer)]
        case FolderOpen():
            return [("folder", folder) for folder in body.folders]
        case RecordPut():
            return [("record", body.record)]
        case ConsentGrant():
            return [("consent", body.consent)]
        case _:
            return []


def target_of(bits: int) -> int:
    """Bitcoin's compact target, positive ones alone."""
    exponent, mantissa = bits >> 24, bits & 0x7FFFFF
    return mantissa << 8 * (exponent - 3) if exponent >= 3 else mantissa >> 8 * (3 - exponent)


@dataclass
class Replay:
    """The state that a chain's blocks come to, one after another."""

    genesis: Genesis
    state: dict[bytes, bytes] = field(default_factory=dict)
    ids: list[bytes] = field(default_factory=list)
    # txid -> height, index, code; claim -> txid of the one that got it; consent id -> its grant
    places: dict[bytes, tuple[int, int, Code]] = field(default_factory=dict)
    claims: dict[Claim, bytes] = field(default_factory=dict)
    grants: dict[bytes, Transaction] = field(default_factory=dict)
    doubles: list[str] = field(default_factory=list)
    proposers: list[bytes] = field(default_factory=list)
    _root: bytes = bytes(32)
    _time_ms: int = -1
    _history: HistoryTree = field(default_factory=HistoryTree)

    def begin(self) -> None:
        """Executes block 0."""
        view = View(lambda _key: None)
        REGISTRY.install_genesis(view, self.genesis)
        self._take_writes(view)
        block = self.genesis.block(self._root)
        self.ids.append(block.block_id)
        self._time_ms = block.body.time_ms
        self._history.append(block.block_id)

    def _take_writes(self, view: View) -> None:
        self._root = next_state_root(self._root, view.writes)
        for key, value in view.writes.items():
            if value is None:
                self.state.pop(key, None)
            else:
                self.state[key] = value

    def run(self, blocks: Iterable[Block]) -> None:
        """Executes the blocks after those that were."""
        for block in blocks:
            self.execute(block)

    def execute(self, block: Block) -> None:
        """Executes the next block; raises :class:`ReplayError` where anything that it says is not so."""
        self._check_header(block)
        view = View(self.state.get)
        self._pay(view, block)
        transactions = [decoded(block.transaction_bytes(i)) for i in range(block.count)]
        codes = [self._judge(view, block, index, item) for index, item in enumerate(transactions)]
        txids = b"".join(item.txid for item in transactions)
        results = struct.pack(f">{len(codes)}H", *codes)
        self._take_writes(view)
        entries, offsets = result_entries(txids, results)
        body = block.body
        found = (
            ("results", results, block.results),
            ("tx root", merkle_root(txids), body.tx_root),
            ("result root", merkle_root(leaf_hashes(entries, offsets), hashed=True), body.result_root),
            ("state root", self._root, body.state_root),
            ("history root", self._history.root(), body.history_root),
        )
        for name, ours, theirs in found:
            if ours != theirs:
                raise ReplayError(f"height {block.height}: another {name}")
        self._history.append(block.block_id)
        self.ids.append(block.block_id)
        self.proposers.append(body.proposer)
        self._time_ms = body.time_ms

    def _check_header(self, block: Block) -> None:
        header, height = block.header, len(self.ids)
        digest = hashlib.sha256(hashlib.sha256(header.encode()).digest()).digest()
        problems = {
            "height": block.height != height,
            "link": header.previous_id != self.ids[-1],
            "commitment": hashlib.sha256(block.body.encode()).digest() != header.commitment,
            "time": block.body.time_ms <= self._time_ms or header.time_s != block.body.time_ms // 1000,
            "work": int.from_bytes(digest, "little") > target_of(header.bits),
            "proposer": block.body.proposer not in self.genesis.proposers,
        }
        wrong = [name for name, bad in problems.items() if bad]
        if wrong:
            raise ReplayError(f"height {height}: wrong {', '.join(wrong)}")

    def rules_at(self, height: int) -> Rules:
        """The rule set of the next block, as the state says."""
        return REGISTRY.rules(self.rule_set_at(height))

    def rule_set_at(self, height: int) -> int:
        """Its number, which is that of genesis before anything was executed."""
        value = self.state.get(RULE_SETS.prefix + self.genesis.chain_id)
        return self.genesis.rule_set if value is None else RULE_SETS.decode(value).at(height).rule_set

    def _pay(self, view: View, block: Block) -> None:
        """The genesis schedule's reward, and whatever else is due at a block."""
        opening = BlockOpening(self.genesis, block.height, block.body.time_ms, block.body.proposer)
        self.rules_at(block.height).open_block(view, opening)

    def _judge(self, view: View, block: Block, index: int, transaction: Transaction) -> Code:
        txid, time_ms = transaction.txid, block.body.time_ms
        if txid in self.places:
            self.doubles.append(
                f"transaction {txid.hex()} stands at {self.places[txid][:2]} and {block.height, index}"
            )
        if not signed(txid, transaction.encoded[-64:], transaction.signer):
            raise ReplayError(f"height {block.height}: nobody signed transaction {index}")
        if transaction.chain_id != self.genesis.chain_id or time_ms > transaction.expires_ms:
            raise ReplayError(f"height {block.height}: transaction {index} is of another chain or time")
        context = Context(  # of its own: nothing is left of another
            view,
            chain_id=self.genesis.chain_id,
            height=block.height,
            time_ms=time_ms,
        )
        rules = self.rules_at(block.height)
        code = apply(context, rules, transaction.signer, body_under(rules, transaction))
        self.places[txid] = (block.height, index, code)
        if code == Code.OK:
            self._claim(transaction)
        return code

    def _claim(self, transaction: Transaction) -> None:
        for claim in claim_of(transaction):
            earlier = self.claims.setdefault(claim, transaction.txid)
            if earlier != transaction.txid:
                self.doubles.append(f"two transactions got the {claim[0]} {claim[1].hex()}")
        if isinstance(transaction.body, ConsentGrant):
            self.grants[transaction.body.consent] = transaction
