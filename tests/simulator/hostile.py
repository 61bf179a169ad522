"""Peers that lie: members with a certificate and a proposer's key, which speak the protocol and break its promises.

A liar does not run a node. It dials every node again and again, shakes hands, and tells its lie; what it needs to know
of the chain it reads from a running node, as if it had another, honest link. Each says whether its lie is such that
whoever hears it has to ban it (``provable``); all the others must merely do no harm.
"""

import random
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from fastledger._native.scan import scan_many
from fastledger.chain.admission import lay_out
from fastledger.crypto.signing import SigningKey
from fastledger.crypto.work import bits_to_target, search_nonce
from fastledger.errors import Code
from fastledger.limits import FUTURE_MS_MAX
from fastledger.model.block import Block, Header, HeaderBody, SealedHeader
from fastledger.model.receipt import make_seal
from fastledger.peers.compact import compact_form
from fastledger.peers.sync import close_header
from fastledger.peers.wire import (
    BlockMessage,
    BlockTransactions,
    FrameReader,
    GetBlocks,
    GetBlockTransactions,
    GetHeaders,
    GetPeers,
    GetTransactions,
    Headers,
    Hello,
    Inventory,
    Message,
    Peers,
    Ping,
    Pong,
    Transactions,
    WireFault,
    encode_frame,
    split_ids,
)
from fastledger.version import PEER_PROTOCOL_VERSION
from simulator.clock import START_MS
from simulator.options import MINUTE_MS, SECOND_MS

if TYPE_CHECKING:
    from simulator.node import Node
    from simulator.run import Run

NONCES = 1 << 32
DIAL_EVERY_MS = 2 * MINUTE_MS
MUCH_WORK = (1 << 200).to_bytes(32, "big")


class Liar:
    """One liar with a link to each node; a subclass says what it tells."""

    kind: ClassVar[str] = ""
    provable: ClassVar[bool] = False
    lie_every_ms: ClassVar[int] = 40 * SECOND_MS
    claims_work: ClassVar[bool] = False

    def __init__(self, run: "Run", key: SigningKey) -> None:
        self.run = run
        self.key = key
        self.name = f"liar-{self.kind}"
        self.organisation = f"org-{self.kind}"
        self.address = f"{self.name}:9000"
        self.listening = True
        self.rng: random.Random = run.source(self.name)
        self.links: dict[int, str] = {}
        self._readers: dict[int, FrameReader] = {}
        self._greeted: set[int] = set()
        self.refused: set[str] = set()
        # Nodes whose links stood long enough for a lie to be told and heard.
        self.told: set[str] = set()

    # Dialling.

    def begin(self) -> None:
        """Dials everybody, for ever."""
        for node in (*self.run.nodes, *self.run.rogues):
            self.run.schedule.after(self.rng.randint(1, MINUTE_MS), partial(self._dial, node))

    def _dial(self, node: "Node") -> None:
        if node.running and node.address not in self.links.values():
            self.run.network.dial(self, node.address)
        self.run.schedule.after(
            self.rng.randint(DIAL_EVERY_MS // 2, DIAL_EVERY_MS), partial(self._dial, node)
        )

    def link_opened(self, link: int, address: str, organisation: str, *, inbound: bool) -> None:
        self.links[link] = address
        self._readers[link] = FrameReader(lambda _tag: None)
        self.send(link, self.hello())
        self.run.schedule.after(2 * SECOND_MS, partial(self._lie, link))

    def link_failed(self, address: str) -> None:
        """Tried again later."""

    def link_sent(self, link: int, size: int) -> None:
        """It keeps no books."""

    def link_closed(self, link: int) -> None:
        self.links.pop(link, None)
        self._readers.pop(link, None)
        self._greeted.discard(link)

    def link_received(self, link: int, data: bytes) -> None:
        reader = self._readers.get(link)
        if reader is None:
            return
        try:
            for message in reader.feed(data):
                self.heard(link, message)
        except WireFault:
            self.run.network.close(self, link)
            self.link_closed(link)

    # Speaking.

    def send(self, link: int, message: Message) -> None:
        self.send_bytes(link, encode_frame(message))

    def send_bytes(self, link: int, data: bytes) -> None:
        self.run.network.send(self, link, data)

    def oracle(self) -> Any:
        """The chain of some running node that can go on from its tip; None where there is none."""
        running = [node for node in self.run.honest if node.running and node.chain.release_needed is None]
        return running[self.rng.randrange(len(running))].chain if running else None

    def hello(self) -> Hello:
        """What an honest node would say, at times with more work than there is."""
        chain = self.oracle()
        height, work, tip = 0, bytes(32), bytes(32)
        if chain is not None:
            height, work, tip = chain.tip.height, chain.work.to_bytes(32, "big"), chain.tip.block_id
        if self.claims_work:
            height, work = height + 50, MUCH_WORK
        genesis = self.run.genesis
        now_ms = START_MS + self.run.schedule.now_ms
        nonce = self.rng.randbytes(8)
        rule_set = self.rng.randint(1, 3)
        return Hello(
            genesis.chain_id, genesis.digest, nonce, height, work, tip, now_ms, self.address, "honest/1.0", rule_set
        )

    def heard(self, link: int, message: Message) -> None:
        """What comes back: it keeps the link alive, and knows when the handshake is done."""
        match message:
            case Hello():
                self._greeted.add(link)
            case Ping():
                self.send(link, Pong(message.nonce, message.height, message.work, message.tip))
            case _:
                self.asked(link, message)

    def asked(self, link: int, message: Message) -> None:
        """Requests are not answered, save by those who lie in their answers."""

    def _lie(self, link: int) -> None:
        if link not in self.links:
            return
        if link in self._greeted:
            self.run.trace(f"{self.name} lies to {self.links[link]}")
            self.lie(link)
        self.run.schedule.after(self.lie_every_ms, partial(self._lie, link))

    def lie(self, link: int) -> None:
        """Told again and again while the link stands."""

    # Making blocks.

    def forge(self, **changes: Any) -> Block | None:
        """An empty block on some node's tip with real work and this liar's real seal, wrong as ``changes`` say."""
        chain = self.oracle()
        template = chain.template(START_MS + self.run.schedule.now_ms) if chain is not None else None
        if template is None:
            return None
        block = self.finish(template.parent_id, template.body, template.bits, template.transactions, changes)
        return replace(block, results=template.draft.execution.results)

    def finish(
        self,
        parent: bytes,
        body: HeaderBody,
        bits: int,
        transactions: tuple[Any, ...],
        changes: dict[str, Any],
    ) -> Block:
        """Body and header with the changes, worked and sealed."""
        draft = replace(body, proposer=self.key.public_key, extra_nonce=self.rng.getrandbits(32), **changes)
        header = Header(parent, draft.commitment, draft.time_ms // 1000, bits)
        nonce = search_nonce(header.encode(), bits_to_target(bits), 0, NONCES) or 0
        header = replace(header, nonce=nonce)
        seal = make_seal(self.key, self.run.genesis.chain_id, header, draft, len(transactions))
        encoded = [pending.encoded for pending in transactions]
        lengths = b"".join(len(item).to_bytes(4, "little") for item in encoded)
        return Block(header, draft, seal, b"".join(encoded), lengths, bytes(2 * len(encoded)))

    def caught_by(self, node: str) -> bool:
        """Whether this node has to have banned it by the end of the run."""
        return self.provable


class WrongChain(Liar):
    """Is of another chain."""

    kind = "wrong-chain"

    def hello(self) -> Hello:
        honest = super().hello()
        return Hello(b"elsewher", *(getattr(honest, name) for name in honest.__struct_fields__[1:]))


class WrongRoot(Liar):
    """Works and seals blocks whose state root is not what executing them comes to."""

    kind = "wrong-root"
    provable = True

    def __init__(self, run: "Run", key: SigningKey) -> None:
        super().__init__(run, key)
        self._blocks: dict[bytes, Block] = {}

    def lie(self, link: int) -> None:
        block = self.forge(state_root=self.rng.randbytes(32))
        if block is not None:
            self.tell(link, block)

    def tell(self, link: int, block: Block) -> None:
        scan = scan_many(*lay_out([block.transaction_bytes(index) for index in range(block.count)]))
        txids = [scan.txids[32 * index : 32 * index + 32] for index in range(block.count)]
        self._blocks[block.block_id] = block
        self.send(link, compact_form(block.sealed_header, block.results, txids, self.rng.randbytes(8)))

    def asked(self, link: int, message: Message) -> None:
        """Whoever lacks a transaction of its blocks gets it: the lie is in the header."""
        if isinstance(message, GetBlockTransactions) and message.block_id in self._blocks:
            block, indexes = self._blocks[message.block_id], message.indexes
            wanted = [int.from_bytes(indexes[at : at + 2], "big") for at in range(0, len(indexes), 2)]
            bodies = [block.transaction_bytes(index) for index in wanted if index < block.count]
            self.send(link, BlockTransactions(message.block_id, bodies))
        elif isinstance(message, GetBlocks):
            for block_id in split_ids(message.ids):
                if block_id in self._blocks:
                    self.send(link, BlockMessage(self._blocks[block_id].encode()))


class BadWork(WrongRoot):
    """Seals headers that nobody worked for."""

    kind = "bad-work"

    def lie(self, link: int) -> None:
        block = self.forge()
        if block is None:
            return
        header, target = block.header, bits_to_target(block.header.bits)
        nonce = next(
            nonce
            for nonce in range(1 << 20)
            if int.from_bytes(replace(header, nonce=nonce).block_id, "little") > target
        )
        header = replace(header, nonce=nonce)
        seal = make_seal(self.key, self.run.genesis.chain_id, header, block.body, 0)
        self.tell(link, Block(header, block.body, seal, b"", b"", b""))


class BadSignature(Liar):
    """Offers transactions under signatures of nobody."""

    kind = "bad-signature"

    def __init__(self, run: "Run", key: SigningKey) -> None:
        super().__init__(run, key)
        self._forged: dict[bytes, bytes] = {}

    def lie(self, link: int) -> None:
        signed = [wish.transaction for wish in self.run.wishes if wish.transaction is not None]
        if not signed:
            return
        honest = self.rng.choice(signed)
        # What a node has already it does not ask for: a word of the payload changes the id.
        flipped = bytearray(honest.encoded)
        flipped[-66] ^= 1
        scan = scan_many(*lay_out([bytes(flipped)]))
        if scan.statuses[0] == Code.OK:
            self._forged[scan.txids] = bytes(flipped)
            self.send(link, Inventory(scan.txids))

    def asked(self, link: int, message: Message) -> None:
        if isinstance(message, GetTransactions):
            ids = split_ids(message.txids)
            bodies = [self._forged[txid] for txid in ids if txid in self._forged]
            missing = b"".join(txid for txid in ids if txid not in self._forged)
            self.send(link, Transactions(bodies, missing))


class Answering(Liar):
    """Claims more work than there is, so that it is asked for headers, then for blocks."""

    claims_work = True

    def __init__(self, run: "Run", key: SigningKey) -> None:
        super().__init__(run, key)
        self._blocks: dict[bytes, Block] = {}

    def asked(self, link: int, message: Message) -> None:
        if isinstance(message, GetHeaders):
            headers = [close_header(sealed) for sealed in self.headers(split_ids(message.locator))]
            self.send(link, Headers(headers, 1_000, MUCH_WORK, self.rng.randbytes(32)))
        elif isinstance(message, GetBlocks):
            for block_id in split_ids(message.ids):
                if block_id in self._blocks:
                    self.send(link, BlockMessage(self._blocks[block_id].encode()))

    def headers(self, locator: list[bytes]) -> list[SealedHeader]:
        """What it answers to GetHeaders."""
        return []


class WrongHints(Answering):
    """Good blocks with verification hints that belong to nothing."""

    kind = "wrong-hints"

    def headers(self, locator: list[bytes]) -> list[SealedHeader]:
        block = self.forge()
        if block is None:
            return []
        chain = self.oracle()
        if block.count and chain is not None:
            hints = b"\x01" + self.rng.randbytes(33 * block.count)
            block = replace(block, hints=hints)
        self._blocks[block.block_id] = block
        return [block.sealed_header]


class BadCopies(Answering):
    """Good headers, spoilt blocks: each copy lacks what its id does not cover, and must not condemn the id."""

    kind = "bad-copies"
    claims_work = False

    def oracle(self) -> Any:
        running = [node for node in self.run.honest if node.running]
        return max(running, key=lambda node: node.chain.work).chain if running else None

    def asked(self, link: int, message: Message) -> None:
        chain = self.oracle()
        if chain is None:
            return
        if isinstance(message, GetHeaders):
            found = chain.headers_after(split_ids(message.locator), message.limit)
            work = chain.work.to_bytes(32, "big")
            headers = [close_header(sealed) for sealed in found]
            self.send(link, Headers(headers, chain.tip.height, work, chain.tip.block_id))
        elif isinstance(message, GetBlocks):
            for block_id in split_ids(message.ids):
                block = chain.block(block_id)
                if block is not None:
                    self.send(link, BlockMessage(self.spoilt(block).encode()))

    def spoilt(self, block: Block) -> Block:
        """The block with something wrong that its id does not show."""
        seal = bytearray(block.seal)
        seal[-1] ^= 1
        if not block.count or self.rng.random() < 0.2:
            return replace(block, seal=bytes(seal))
        body = bytearray(block.transactions)
        match self.rng.randrange(5):
            case 0:
                body[-1] ^= 1  # the last signature
                return replace(block, transactions=bytes(body))
            case 1:
                body[len(body) // 2] ^= 1
                return replace(block, transactions=bytes(body))
            case 2:
                return replace(block, results=self.rng.randbytes(len(block.results)))
            case 3:
                return replace(block, hints=b"\x01" + self.rng.randbytes(33 * block.count))
            case _:
                return replace(block, transactions=b"", lengths=b"", results=b"", hints=b"")


class FutureTime(WrongRoot):
    """Dates its blocks hours ahead: to be held back, not taken, and no reason for a ban."""

    kind = "future-time"
    provable = False

    def lie(self, link: int) -> None:
        now_ms = START_MS + self.run.schedule.now_ms
        block = self.forge(time_ms=now_ms + FUTURE_MS_MAX + self.rng.randint(1, 600) * MINUTE_MS)
        if block is not None:
            self.tell(link, block)


class EndlessHeaders(Answering):
    """Headers without end: of parents that nobody knows, each with its work and seal."""

    kind = "endless-headers"

    def headers(self, locator: list[bytes]) -> list[SealedHeader]:
        found: list[SealedHeader] = []
        parent = self.rng.randbytes(32)
        chain = self.oracle()
        if chain is None:
            return found
        template = chain.template(START_MS + self.run.schedule.now_ms)
        for height in range(1, 8):
            body = replace(template.body, height=height)
            block = self.finish(parent, body, template.bits, (), {})
            found.append(block.sealed_header)
            parent = block.block_id
        return found


class LyingInventory(Liar):
    """Offers what it does not have: other ids to everybody, and ids of real transactions that it then withholds."""

    kind = "lying-inventory"

    def lie(self, link: int) -> None:
        chain = self.oracle()
        real = list(chain.mempool)[:50] if chain is not None else []
        invented = [self.rng.randbytes(32) for _ in range(50)]
        self.send(link, Inventory(b"".join(real + invented)))

    def asked(self, link: int, message: Message) -> None:
        if isinstance(message, GetTransactions) and self.rng.random() < 0.5:
            self.send(link, Transactions([], message.txids))


class WithheldData(WrongRoot):
    """Tells of blocks that are worked and sealed, and never gives what is in them: more work that leads nowhere."""

    kind = "withheld-data"
    provable = False
    lie_every_ms = 3 * MINUTE_MS

    def lie(self, link: int) -> None:
        block = self.forge(tx_root=self.rng.randbytes(32))
        if block is not None:
            seal = make_seal(self.key, self.run.genesis.chain_id, block.header, block.body, 1)
            sealed = SealedHeader(block.header, block.body, seal, 1)
            self.send(link, compact_form(sealed, bytes(2), [self.rng.randbytes(32)], self.rng.randbytes(8)))


class HugeFrames(Liar):
    """Announces frames of gigabytes."""

    kind = "huge-frames"
    provable = True

    def lie(self, link: int) -> None:
        self.send_bytes(link, (2**31).to_bytes(4, "big") + self.rng.randbytes(64))


class Dribble(Liar):
    """Begins a frame and sends a byte of it now and then."""

    kind = "dribble"
    lie_every_ms = 3 * SECOND_MS

    def __init__(self, run: "Run", key: SigningKey) -> None:
        super().__init__(run, key)
        self._begun: set[int] = set()

    def lie(self, link: int) -> None:
        if link not in self._begun:
            self._begun.add(link)
            self.send_bytes(link, encode_frame(Inventory(bytes(32 * 1_000)))[:20])
        else:
            self.send_bytes(link, b"\0")


class Eclipse(Liar):
    """Surrounds nodes: many links at once, and addresses of nobody in answer to who asks for peers."""

    kind = "eclipse"

    def _dial(self, node: "Node") -> None:
        if node.running:
            for _ in range(8):
                self.run.network.dial(self, node.address)
        self.run.schedule.after(DIAL_EVERY_MS, partial(self._dial, node))

    def asked(self, link: int, message: Message) -> None:
        if isinstance(message, GetPeers):
            fakes = [f"10.0.{self.rng.randrange(256)}.{self.rng.randrange(256)}:9000" for _ in range(30)]
            self.send(link, Peers([self.address, *fakes]))


class Garbage(Liar):
    """Bytes of no meaning behind a good handshake."""

    kind = "garbage"
    provable = True

    def lie(self, link: int) -> None:
        # A length that may be, so that the rest is looked at.
        head = (200).to_bytes(4, "big") + bytes((PEER_PROTOCOL_VERSION,))
        self.send_bytes(link, head + b"\xff" + self.rng.randbytes(300))


class Echo(Liar):
    """Sends what it hears back to everybody, twice and late: every message is doubled and out of its place."""

    kind = "echo"

    def asked(self, link: int, message: Message) -> None:
        for other in sorted(self.links):
            for _ in range(2):
                delay_ms = self.rng.randint(1, 20 * SECOND_MS)
                self.run.schedule.after(delay_ms, partial(self.send, other, message))


KINDS: dict[str, type[Liar]] = {
    liar.kind: liar
    for liar in (
        WrongChain,
        WrongRoot,
        BadWork,
        BadSignature,
        WrongHints,
        BadCopies,
        WithheldData,
        FutureTime,
        EndlessHeaders,
        LyingInventory,
        HugeFrames,
        Dribble,
        Eclipse,
        Garbage,
        Echo,
    )
}


def make_liars(run: "Run", keys: list[SigningKey]) -> list[Liar]:
    """The liars that the run's options name, each with a proposer's key."""
    return [KINDS[kind](run, key) for kind, key in zip(run.options.hostile, keys, strict=True)]
