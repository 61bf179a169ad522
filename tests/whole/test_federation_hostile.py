"""Lies on real TLS links, one after another, to one node that goes on with an honest one (SPEC-FED-16).

Two organisations run nodes; two others have certificates and proposers' keys in the hands of plain sockets. What is
said of a lie in memory (test_peer_hostile.py, test_peer_eclipse.py) holds on sockets too.
"""

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hostile_peer import HOST, HostilePeer
from test_federation import banned, registrations

from fastledger import Ledger
from fastledger.chain.forks.chain import ForkChain
from fastledger.chain.forks.templates import Template
from fastledger.cli.demo.organisations import Member, NetOptions, NetWorld
from fastledger.consensus.engines import make_engine
from fastledger.consensus.pow import PowEngine
from fastledger.crypto.node_key import load_node_key
from fastledger.crypto.work import NONCES, bits_to_target, search_nonce
from fastledger.limits import FUTURE_MS_MAX, PEER_HEADERS_MAX, PEER_TRANSACTIONS_PER_LINK_MAX
from fastledger.model.block import ZERO32, Block, Header, HeaderBody, SealedHeader
from fastledger.model.receipt import make_seal
from fastledger.model.transaction import Transaction
from fastledger.node.federation.tls import PEER_PROTOCOL
from fastledger.peers.compact import compact_form
from fastledger.peers.settings import CloseCode
from fastledger.peers.sync import close_header
from fastledger.peers.wire import (
    BlockMessage,
    FrameReader,
    GetBlocks,
    GetHeaders,
    GetPeers,
    GetTransactions,
    Goodbye,
    Headers,
    Inventory,
    Message,
    Peers,
    Transactions,
    encode_frame,
)

M = TypeVar("M", bound=Message)
GROWTH_BYTES_MAX = 64 * 1024 * 1024
HANDSHAKE_SOURCES = iter(f"127.0.0.{number}" for number in range(2, 255))


def await_message(peer: HostilePeer, kind: type[M], seconds: float = 30) -> M:
    """The first message of a kind, which is then forgotten."""
    deadline = time.monotonic() + seconds
    while True:
        for message in peer.heard:
            if isinstance(message, kind):
                peer.heard.remove(message)
                return message
        assert time.monotonic() < deadline, f"no {kind.__name__}"
        assert peer.listen(0.1), f"closed before a {kind.__name__}"


def rss_anon(member: Member) -> int:
    """Bytes of memory that stand for no file."""
    assert member.process is not None
    status = Path(f"/proc/{member.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Forger:
    """A proposer's key and chain without a node, for blocks that nobody else would make."""

    def __init__(self, world: NetWorld, name: str) -> None:
        self.genesis = world.genesis
        self.key = load_node_key(world[name].ledger / "node.key", None)
        self.ledger = Ledger.open(world[name].ledger)
        assert self.ledger.forks is not None
        self.forks = self.ledger.forks

    def catch_up(self, peer: HostilePeer) -> None:
        """Takes what a node has, over a link on which nothing else is asked."""
        locator = self.forks.call(lambda chain: b"".join(chain.locator())).result()
        peer.say(GetHeaders(locator, PEER_HEADERS_MAX))
        ids = [Header.decode(wire.header80).block_id for wire in await_message(peer, Headers).headers]
        for block_id in ids:
            peer.say(GetBlocks(block_id))
            self.take(Block.decode(await_message(peer, BlockMessage).block))

    def take(self, block: Block) -> None:
        self.forks.call(lambda chain: chain.add_block(block, now_ms())).result()

    def work_after(self, block: Block) -> int:
        """The work of the chain that ends with a block on this one's tip."""

        def add(chain: ForkChain) -> int:
            chain.add_headers([block.sealed_header], block.body.time_ms)
            entry = chain.tree.get(block.block_id)
            assert entry is not None
            return entry.work

        return self.forks.call(add).result()

    def block(self, *transactions: bytes, **changes: Any) -> Block:
        """A block on this chain's tip with real work and a real seal, its body changed."""

        def draft(chain: ForkChain) -> Template:
            chain.submit(list(transactions), now_ms())
            template = chain.template(now_ms())
            assert template is not None
            return template

        template = self.forks.call(draft).result()
        body = replace(template.body, **changes)
        header = worked(Header(template.parent_id, body.commitment, body.time_ms // 1000, template.bits))
        count = len(template.transactions)
        return template.block(header, body, make_seal(self.key, self.genesis.chain_id, header, body, count))

    def close(self) -> None:
        self.ledger.close()


def now_ms() -> int:
    return int(time.time() * 1000)


def worked(header: Header) -> Header:
    """The header with a nonce that its bits ask for."""
    nonce = search_nonce(header.encode(), bits_to_target(header.bits), 0, NONCES, threads=1)
    assert nonce is not None
    return replace(header, nonce=nonce)


class Scene:
    """A victim and an honest miner as processes, a rogue and its neighbour as sockets from the same address."""

    def __init__(self, world: NetWorld) -> None:
        self.world = world
        self.victim, self.honest, rogue, neighbour = world.members.values()
        self.rogue, self.neighbour = rogue.name, neighbour.name
        world.start(self.victim.name, self.honest.name)
        world.wait_until_linked(1)
        self.forger = Forger(world, self.rogue)
        self.goes_on()
        self.rss = rss_anon(self.victim)

    def link(self, name: str = "") -> HostilePeer:
        """A connection from an address of its own, so that the rate of handshakes does not decide."""
        source = next(HANDSHAKE_SOURCES)
        return HostilePeer(
            self.world.folder / "authority",
            name or self.rogue,
            self.victim.peer_port,
            self.world.genesis,
            source=source,
        )

    def points(self, name: str = "") -> int:
        """What is held against an organisation that has a link."""
        peers = self.victim.connect().peers()["peers"]
        return max(
            (peer["points"] for peer in peers if peer["organisation"] == (name or self.rogue)), default=0
        )

    def until(self, condition: Any, what: str) -> None:
        self.world.wait_for(condition, what)

    def goes_on(self) -> None:
        """Blocks of the honest one still arrive, and both stand at one tip when nobody mines."""
        height = self.victim.status()["tip_height"]
        self.honest.connect().mine(on=True)
        self.until(lambda: self.victim.status()["tip_height"] > height + 1, "honest blocks")
        self.honest.connect().mine(on=False)
        self.until(self.world.agree, "one tip")

    def forge(self, *transactions: bytes, **changes: Any) -> Block:
        with self.link(self.neighbour) as peer:
            self.forger.catch_up(peer.greet())
        return self.forger.block(*transactions, **changes)

    def offer(self, peer: HostilePeer, block: Block, copy: Block) -> None:
        """Tells of a block by its header and sends ``copy`` once it is asked for."""
        work = self.forger.work_after(block).to_bytes(32, "big")
        peer.greet(height=block.height, work=work, tip=block.block_id)
        deadline = time.monotonic() + 30
        while not any(isinstance(message, GetBlocks) for message in peer.heard):
            for message in [message for message in peer.heard if isinstance(message, GetHeaders)]:
                peer.heard.remove(message)
                peer.say(Headers([close_header(block.sealed_header)], block.height, work, block.block_id))
            assert time.monotonic() < deadline and peer.listen(0.1)
        peer.say(BlockMessage(copy.encode()))

    def is_tip(self, block: Block) -> bool:
        return bool(self.victim.status()["tip"] == block.block_id.hex())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    settings = {"FASTLEDGER_NODE__FEDERATION__DISCOVER": "true"}
    options = NetOptions(spacing_ms=200, finality_depth=6, miners=(), settings=settings)
    with NetWorld(tmp_path_factory.mktemp("hostile") / "net", options) as world:
        scene = Scene(world)
        yield scene
        scene.forger.close()


@pytest.fixture
def scene(network: Scene) -> Iterator[Scene]:
    """The same two nodes for every lie; after each the chain grows, memory is bounded and nobody else is shut out."""
    network.victim.connect().unban(organisation=network.rogue)
    yield network
    network.goes_on()
    assert set(banned(network.victim)) <= {network.rogue}
    assert rss_anon(network.victim) < network.rss + GROWTH_BYTES_MAX
    assert all(member.runs for member in (network.victim, network.honest))


def spoilt(encoded: bytes) -> bytes:
    """A transaction, or a block's last one, with another signature: its id does not cover that."""
    return encoded[:-1] + bytes([encoded[-1] ^ 1])


def test_another_chain_is_told_so_and_dropped(scene: Scene) -> None:  # SPEC-PEER-7
    for changes in ({"chain_id": os.urandom(8)}, {"genesis_digest": os.urandom(32)}):
        with scene.link() as peer:
            assert peer.greet(**changes).is_refused()
            assert await_heard(peer, Goodbye).code == CloseCode.WRONG_CHAIN
    # A node that was set up wrongly does the same: a nuisance, and no ban.
    assert banned(scene.victim) == []


def await_heard(peer: HostilePeer, kind: type[M]) -> M:
    """What a link that is closed by now said last of a kind."""
    return [message for message in peer.heard if isinstance(message, kind)][-1]


def test_bad_signatures_are_charged_and_the_good_copy_is_welcome(scene: Scene) -> None:  # SPEC-PEER-30
    (good,) = registrations(scene.world, 1)
    txid = Transaction.decode(good).txid
    with scene.link() as liar, scene.link(scene.neighbour) as other:
        other.greet()
        liar.greet().say(Inventory(txid))
        await_message(liar, GetTransactions)
        liar.say(Transactions([spoilt(good)], b""))
        scene.until(lambda: scene.points() > 50, "points for the signature")
        other.say(Inventory(txid))
        await_message(other, GetTransactions)
        waiting = scene.victim.status()["mempool"]
        other.say(Transactions([good], b""))
        scene.until(lambda: scene.victim.status()["mempool"] > waiting, "the good copy")
        (another,) = registrations(scene.world, 1)
        liar.say(Inventory(Transaction.decode(another).txid))
        await_message(liar, GetTransactions)
        liar.say(Transactions([spoilt(another)], b""))
        assert liar.is_refused()
    assert banned(scene.victim) == [scene.rogue]


def test_a_block_with_a_bad_signature_is_a_bad_copy(scene: Scene) -> None:  # SPEC-PEER-21
    for offence in range(2):
        block = scene.forge(*registrations(scene.world, 3))
        with scene.link() as liar:
            scene.offer(liar, block, replace(block, transactions=spoilt(block.transactions)))
            if offence == 0:
                scene.until(lambda: scene.points() > 50, "points for the copy")
            else:
                assert liar.is_refused()
        assert not scene.is_tip(block)
        # The block itself is good, and another's copy of it is taken.
        with scene.link(scene.neighbour) as other:
            scene.offer(other, block, block)
            scene.until(lambda: scene.is_tip(block), "the good copy")  # noqa: B023 - called at once
    assert banned(scene.victim) == [scene.rogue]


def test_wrong_hints_are_charged_and_the_block_stands(scene: Scene) -> None:  # SPEC-PEER-21
    block = scene.forge(*registrations(scene.world, 3))
    assert len(block.hints) > 1
    with scene.link() as liar:
        scene.offer(liar, block, replace(block, hints=block.hints[:1] + block.hints[:0:-1]))
        scene.until(lambda: scene.is_tip(block), "the block")
        scene.until(lambda: scene.points() >= 20, "points for the hints")
        assert liar.listen(0.2)
    assert scene.victim.metric("fastledger_federation_wrong_hints_total") == 1
    assert banned(scene.victim) == []


def test_a_block_from_the_future_waits_and_condemns_nothing(scene: Scene) -> None:  # SPEC-PEER-15
    ahead = scene.forge(time_ms=now_ms() + FUTURE_MS_MAX + 5_000)
    day = scene.forge(time_ms=now_ms() + 86_400_000)
    tip = scene.victim.status()["tip"]
    with scene.link() as liar:
        liar.greet()
        for block in (ahead, day):
            liar.say(compact_form(block.sealed_header, block.results, [], bytes(8)))
        scene.until(lambda: scene.points() >= 20, "points for a day")
        assert scene.victim.status()["tip"] == tip
        assert liar.listen(0.2)
        # When its time has come it is as good as any other. (It is not given: at this spacing honest blocks would
        # be rare until clocks have come up with it.)
        assert await_message(liar, GetBlocks).ids == ahead.block_id
    assert banned(scene.victim) == []


def test_work_that_is_claimed_and_not_shown_ends_in_a_ban(scene: Scene) -> None:  # SPEC-PEER-14
    block = scene.forge()
    work = (2**80).to_bytes(32, "big")
    for _ in range(2):
        with scene.link() as liar:
            liar.greet(height=10**6, work=work, tip=b"\1" * 32)
            await_message(liar, GetHeaders)
            liar.say(Headers([close_header(block.sealed_header)], 10**6, work, b"\1" * 32))
            assert liar.is_refused()
    assert banned(scene.victim) == [scene.rogue]


def test_an_inventory_of_nothing_is_equivocation(scene: Scene) -> None:  # SPEC-PEER-30
    with scene.link() as liar:
        liar.greet()
        for _ in range(2):
            ids = os.urandom(32 * 200)
            liar.say(Inventory(ids))
            await_message(liar, GetTransactions)
            liar.say(Transactions([], ids))
        assert liar.is_refused()
    assert banned(scene.victim) == [scene.rogue]


def dribble(peer: HostilePeer, frame: bytes, pause_s: float) -> None:
    """Sends a frame byte by byte; ends when the node hangs up."""
    with contextlib.suppress(OSError):
        for at in range(len(frame)):
            peer.send(frame[at : at + 1])
            if not peer.listen(pause_s):
                return


def test_dribbled_frames_and_mute_inventories_end_while_all_goes_on(scene: Scene) -> None:
    # SPEC-PEER-10, SPEC-PEER-29, SPEC-PEER-30
    frame = encode_frame(Inventory(os.urandom(32 * 100)))
    with scene.link() as byte_wise, scene.link() as stuck, scene.link(scene.neighbour) as mute:
        drip = threading.Thread(target=dribble, args=(byte_wise.greet(), frame, 0.25), daemon=True)
        drip.start()
        stuck.greet().send(frame[:7])
        mute.greet()
        told = [os.urandom(32 * 4_000) for _ in range(4)]
        mute.say(*map(Inventory, told))
        (withheld,) = registrations(scene.world, 1)
        mute.say(Inventory(Transaction.decode(withheld).txid))
        mute.listen(1)
        # What the mute one told of first, and was not even asked for, is taken from whoever has it.
        waiting = scene.victim.status()["mempool"]
        scene.honest.connect().submit([withheld], wait="accepted")
        scene.until(lambda: scene.victim.status()["mempool"] > waiting, "what one withholds")
        scene.goes_on()
        assert stuck.is_refused(40)
        drip.join(40)
        assert not drip.is_alive()
        mute.listen(0.2)
        asked = [message.txids for message in mute.heard if isinstance(message, GetTransactions)]
        assert 0 < sum(map(len, asked)) <= 32 * PEER_TRANSACTIONS_PER_LINK_MAX
    # A dribbled frame ends its link, two are a ban; slow is not hostile.
    assert banned(scene.victim) == [scene.rogue]


class HostileListener(HostilePeer):
    """A hostile peer that the node calls: the other end of a link of its own choice."""

    def __init__(self, authority: Path, name: str, scene: Scene) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority / f"{name}.pem", authority / f"{name}.key")
        context.load_verify_locations(authority / "bundle.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols([PEER_PROTOCOL])
        self.genesis = scene.world.genesis
        self._reader = FrameReader(lambda _tag: None)
        self.heard = []
        with socket.create_server((HOST, 0)) as server:
            server.settimeout(30)
            scene.victim.call("federation.add_peer", address=f"{HOST}:{server.getsockname()[1]}")
            accepted, _ = server.accept()
        accepted.settimeout(30)
        self.socket = context.wrap_socket(accepted, server_side=True)


def test_an_eclipse_leaves_the_honest_links_alone(scene: Scene) -> None:  # SPEC-PEER-24, SPEC-PEER-25
    def honest_links() -> int:
        peers = scene.victim.connect().peers()["peers"]
        return sum(peer["ready"] and peer["organisation"] == scene.honest.name for peer in peers)

    assert honest_links() == 1
    with contextlib.ExitStack() as links:
        crowd = []
        for name in (scene.rogue, scene.neighbour) * 7:
            with contextlib.suppress(OSError):  # refused while its handshake ends
                crowd.append(links.enter_context(scene.link(name)).greet())
        held = {
            name: sum(peer["organisation"] == name for peer in scene.victim.connect().peers()["peers"])
            for name in (scene.rogue, scene.neighbour)
        }
        assert all(0 < count <= 4 for count in held.values()), held
        assert honest_links() == 1
        scene.goes_on()
    scene.until(lambda: scene.victim.status()["peers"] == 1, "the end of the crowd")
    with HostileListener(scene.world.folder / "authority", scene.rogue, scene) as chosen:
        chosen.greet()
        await_message(chosen, GetPeers)
        chosen.say(Peers([f"127.0.1.{number}:9" for number in range(64)]))
        scene.goes_on()
        assert honest_links() == 1
        # More addresses than were asked for end the link.
        chosen.say(Peers(["127.0.2.1:9"]))
        assert chosen.is_refused()
    assert scene.honest.status()["peers"] >= 1


def low_work_headers(forger: Forger, count: int, spacing_ms: int) -> list[SealedHeader]:
    """Headers from the genesis block on that keep every rule that a header has: real work, seals, slow enough."""
    engine = make_engine(forger.genesis)
    assert isinstance(engine, PowEngine)

    def forge(chain: ForkChain) -> list[SealedHeader]:
        made: list[SealedHeader] = []
        for _ in range(count):
            parent = chain.tree.best_header()
            time_ms = parent.body.time_ms + spacing_ms
            body = HeaderBody(
                parent.height + 1, time_ms, ZERO32, ZERO32, ZERO32, ZERO32, forger.key.public_key, ZERO32
            )
            bits = engine.next_bits(parent.tip)
            header = worked(Header(parent.block_id, body.commitment, time_ms // 1000, bits))
            seal = make_seal(forger.key, forger.genesis.chain_id, header, body, 0)
            made.append(SealedHeader(header, body, seal, 0))
            chain.add_headers(made[-1:], now_ms())
        return made

    return forger.forks.call(forge).result()


def test_endless_headers_end_in_a_ban_and_mining_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PEER-15
    founded = now_ms() - 3_600_000  # room for so many headers before the present
    monkeypatch.setattr("fastledger.clock.system_clock_ms", lambda: founded)
    options = NetOptions(spacing_ms=100, finality_depth=6, percent=1, miners=())
    with NetWorld(tmp_path / "net", options) as world:
        victim, rogue, *_ = world.members.values()
        world.start(victim.name)
        with contextlib.closing(Forger(world, rogue.name)) as forger:
            headers = [close_header(one) for one in low_work_headers(forger, PEER_HEADERS_MAX + 1, 1_000)]
        before = rss_anon(victim)
        with HostilePeer(world.folder / "authority", rogue.name, victim.peer_port, world.genesis) as liar:
            # It claims to be at height 0 with much work, and goes on and on past it.
            work = (2**80).to_bytes(32, "big")
            liar.greet(height=0, work=work, tip=b"\1" * 32)
            for batch in (headers[:-1], headers[1:]):
                await_message(liar, GetHeaders)
                liar.say(Headers(batch, 0, work, b"\1" * 32))
            assert liar.is_refused(30)
        assert [ban["why"] for ban in victim.connect().peers()["bans"]] == ["endless-headers"]
        assert rss_anon(victim) < before + GROWTH_BYTES_MAX
        assert victim.connect().mine(on=True)
        world.wait_for(lambda: victim.status()["tip_height"] >= 1, "a block of its own")
