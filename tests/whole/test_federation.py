"""Four organisations as real processes over real TLS: crashes, a partition, a hostile member, operators' commands."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from commands import Cli
from hostile_peer import HostilePeer

from fastledger import Client, Genesis, KemSuite, Ledger, Purpose, Role, Wallet
from fastledger.cli.demo.organisations import Member, NetOptions, NetWorld
from fastledger.crypto.node_key import load_node_key
from fastledger.crypto.work import NONCES, search_nonce
from fastledger.errors import AccessRefused, FastLedgerError
from fastledger.model.block import Block, Header
from fastledger.model.receipt import make_seal
from fastledger.peers.compact import compact_form
from fastledger.peers.wire import BlockMessage, GetHeaders, Headers, Inventory, Ping, WireHeader
from fastledger.rpc.federation import FederationStatusView, PeersView
from fastledger.storage.frames import FRAME_HEADER_BYTES
from fastledger.storage.salvage import Salvage
from fastledger.subjects.catalogue import REGISTRY

PARTITION_S = float(os.environ.get("FASTLEDGER_FEDERATION_PARTITION_S", "6"))
SPACING_MS = 500
# Well above what a half can find while it is parted, at half the hashes.
FINALITY_DEPTH = max(16, int(1.5 * PARTITION_S * 1000 / SPACING_MS))

MakeWorld = Callable[..., NetWorld]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    made: list[NetWorld] = []

    def make(**options: Any) -> NetWorld:
        world = NetWorld(tmp_path / f"net-{len(made)}", NetOptions(**{"spacing_ms": SPACING_MS, **options}))
        made.append(world)
        return world

    yield make
    for world in made:
        world.close()


class Submitters:
    """Registrations through every node that runs, until told to stop; what a node took is kept."""

    def __init__(self, world: NetWorld) -> None:
        self.world = world
        self.taken: dict[str, list[bytes]] = {name: [] for name in world.members}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(member,), daemon=True)
            for member in world.members.values()
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, member: Member) -> None:
        with Client.connect(member.url) as client:
            while not self._stop.wait(0.2):
                try:
                    outcomes = client.submit(registrations(self.world, 4), wait="ordered")
                except FastLedgerError:
                    continue  # it is down, or was killed under this very call
                self.taken[member.name] += [
                    outcome.txid for outcome in outcomes if outcome.height is not None
                ]

    def stop(self) -> set[bytes]:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)
        assert all(self.taken.values()), {name: len(txids) for name, txids in self.taken.items()}
        return {txid for txids in self.taken.values() for txid in txids}


def registrations(world: NetWorld, count: int) -> list[bytes]:
    wallets = [Wallet.create(world.genesis.chain_id, suite=KemSuite.X25519) for _ in range(count)]
    return [wallet.register(Role.PATIENT).encoded for wallet in wallets]


def final_txids(member: Member) -> list[bytes]:
    client, cursor = member.connect(), None
    found: list[bytes] = []
    while True:
        page = client.query(cursor=cursor, limit=1_000)
        found += [entry.txid for entry in page.entries]
        if page.next_cursor is None:
            return found
        cursor = page.next_cursor


def settle(world: NetWorld, expected: set[bytes]) -> None:
    """Waits until everything is final everywhere, ends mining, and compares all there is to compare."""
    members = list(world.members.values())
    world.wait_for(
        lambda: all(member.connect().tip().transaction_count >= len(expected) for member in members),
        f"{len(expected)} final transactions everywhere",
        timeout_s=120,
    )
    world.end_mining()
    height = min(member.connect().tip().height for member in members)
    assert len({member.state_root(height) for member in members}) == 1
    world.wait_for(
        lambda: len({member.connect().tip().height for member in members}) == 1, "one final height"
    )
    assert len({member.state_root() for member in members}) == 1
    chains = [final_txids(member) for member in members]
    assert chains[1:] == chains[:-1]
    assert len(chains[0]) == len(set(chains[0])), "no transaction is twice in a chain"
    assert expected <= set(chains[0])


def test_crashes_and_a_partition_end_on_one_chain(make_world: MakeWorld) -> None:  # SPEC-FED-15
    world = make_world(finality_depth=FINALITY_DEPTH).start()
    world.wait_until_linked(3)
    submitters = Submitters(world)
    for member in world.members.values():
        world.wait_for(lambda: member.status()["tip_height"] >= 2, "blocks")  # noqa: B023 - called at once
        member.kill()
        time.sleep(0.5)
        member.start().connect()
    world.wait_until_linked(3)
    names = list(world.members)
    began = {name: member.status()["tip_height"] for name, member in world.members.items()}
    world.wires.part(set(names[:2]), set(names[2:]))
    time.sleep(PARTITION_S)
    parted = {name: member.status() for name, member in world.members.items()}
    assert all(parted[name]["tip_height"] > began[name] for name in names), "both halves go on"
    assert len({parted[name]["tip"] for name in names}) > 1
    assert all(state["final_height"] <= min(began.values()) for state in parted.values()), (
        "no half is final alone"
    )
    world.wires.heal()
    world.wait_until_linked(3)
    time.sleep(1)
    settle(world, submitters.stop())
    assert sum(member.status()["reorganisations"] for member in world.members.values()) >= 1
    assert (
        sum(member.metric("fastledger_federation_finality_conflicts_total") for member in world.running())
        == 0
    )
    assert [member.stop() for member in world.members.values()] == [0] * 4


def test_one_that_joins_late_and_one_that_was_away(make_world: MakeWorld) -> None:  # SPEC-FED-15
    world = make_world(finality_depth=6, spacing_ms=200)
    *early, late = world.members
    world.start(*early)
    expected = set()
    for name in early:
        outcomes = world[name].connect().submit(registrations(world, 50), wait="durable")
        expected |= {outcome.txid for outcome in outcomes}
    height = world[early[0]].connect().tip().height
    world[late].start().connect()
    world.wait_for(lambda: world[late].connect().tip().height >= height, "the late one at the tip")
    assert expected <= set(final_txids(world[late]))
    world[early[1]].stop()
    outcomes = world[late].connect().submit(registrations(world, 20), wait="durable")
    assert {outcome.status for outcome in outcomes} == {"durable"}
    expected |= {outcome.txid for outcome in outcomes}
    world[early[1]].start().connect()
    settle(world, expected)
    repair_from_peers(world, world[early[1]])
    settle(world, expected)


def repair_from_peers(world: NetWorld, member: Member) -> None:  # SPEC-REP-8
    """Bytes in the middle of a stopped node's log go bad; the others have them."""
    member.stop()
    salvage = Salvage(member.ledger / "log", world.genesis.chain_id)
    frames = list(salvage.frames())
    salvage.close()
    victim = max(frames[:-1], key=lambda frame: frame.ref.length)
    with (member.ledger / "log" / f"{victim.ref.segment:08d}.seg").open("r+b") as file:
        file.seek(victim.ref.offset + FRAME_HEADER_BYTES + 100)
        file.write(b"\xff" * 16)
    report = Cli(world.folder).json("node", "repair", "--config", member.folder / "node.toml")
    assert (report["fetched"], report["replaced"], report["height"]) == (1, True, frames[-1].height)
    member.start().connect()


def banned(member: Member) -> list[str]:
    return [ban["name"] for ban in member.connect().peers()["bans"]]


# SPEC-FED-9, SPEC-FED-10, SPEC-FED-16
def test_a_hostile_member_is_shut_out_and_the_rest_goes_on(make_world: MakeWorld) -> None:
    world = make_world(finality_depth=6)
    *honest, rogue = world.members
    world.start(*honest)
    world.wait_until_linked(2)
    victim = world[honest[0]]

    def attacker() -> HostilePeer:
        victim.connect().unban(organisation=rogue)
        return HostilePeer(world.folder / "authority", rogue, victim.peer_port, world.genesis)

    junk = WireHeader(bytes(80), b"\x01" * 100, bytes(64), 0)
    ill: dict[str, Callable[[HostilePeer], None]] = {
        "garbage": lambda peer: peer.send(os.urandom(4_000)),
        "garbage after a good hello": lambda peer: peer.greet().send(b"\0\0\0\x10" + b"\xc1" * 16),
        "a huge frame": lambda peer: peer.greet().send((2**31).to_bytes(4, "big") + b"\x01" + bytes(1 << 20)),
        "blocks that nobody asked for": lambda peer: peer.greet().say(*[BlockMessage(b"\x90" * 1_000)] * 8),
        "headers that are none": lambda peer: peer.greet().say(
            *[Headers([junk] * 20, 99, bytes(32), bytes(32))] * 8
        ),
        "a flood": lambda peer: peer.greet().say(
            *[Ping(os.urandom(8), 0, bytes(32), bytes(32)) for _ in range(5_000)]
        ),
    }
    for what, attack in ill.items():
        with attacker() as peer:
            with contextlib.suppress(OSError):  # it was cut off in the middle of it
                attack(peer)
            assert peer.is_refused(), what
    with attacker() as peer:
        peer.send(b"\xff" * 64)
        assert peer.is_refused()
    world.wait_for(lambda: rogue in banned(victim), "the ban")
    with (
        pytest.raises(OSError),
        HostilePeer(world.folder / "authority", rogue, victim.peer_port, world.genesis) as again,
    ):
        if again.greet().is_refused():
            raise OSError
    outcomes = victim.connect().submit(registrations(world, 5), wait="durable")
    assert {outcome.status for outcome in outcomes} == {"durable"}
    victim.kill()
    victim.start().connect()
    assert banned(victim) == [rogue], "a ban outlives the process"
    world.wait_until_linked(2)


def forged(member: Member, genesis: Genesis, **changes: Any) -> Block:
    """An empty block on the member's tip with real work and its real seal, wrong as ``changes`` say."""
    key = load_node_key(member.ledger / "node.key", None)
    with Ledger.open(member.ledger) as ledger:
        assert ledger.forks is not None
        template = ledger.forks.call(lambda chain: chain.template(int(time.time() * 1000))).result()
    assert template is not None and not template.transactions
    body = replace(template.body, **changes)
    header = Header(template.parent_id, body.commitment, body.time_ms // 1000, template.bits)
    nonce = search_nonce(header.encode(), template.target, 0, NONCES, threads=2)
    assert nonce is not None
    header = replace(header, nonce=nonce)
    return Block(header, body, make_seal(key, genesis.chain_id, header, body, 0), b"", b"", b"")


@pytest.mark.parametrize("lie", ["state", "work", "seal"])
def test_a_member_that_works_for_a_lie_is_shut_out(make_world: MakeWorld, lie: str) -> None:  # SPEC-FED-16
    world = make_world(finality_depth=6, spacing_ms=200)
    names = list(world.members)
    victim, rogue = world[names[0]], world[names[1]]
    world.start(names[0], names[1])
    world.wait_for(lambda: rogue.status()["tip_height"] >= 3, "blocks")
    world.end_mining()
    tip = victim.status()["tip"]
    rogue.stop()
    block = forged(rogue, world.genesis, **({"state_root": os.urandom(32)} if lie == "state" else {}))
    if lie == "work":
        block = replace(block, header=replace(block.header, nonce=block.header.nonce ^ 1))
    if lie == "seal":
        block = replace(block, seal=block.seal[:-8] + bytes(8))
    with HostilePeer(world.folder / "authority", rogue.name, victim.peer_port, world.genesis) as peer:
        peer.greet()
        assert peer.listen(0.5)
        peer.say(compact_form(block.sealed_header, block.results, [], bytes(8)))
        assert peer.is_refused()
    assert banned(victim) == [rogue.name]
    assert victim.status()["tip"] == tip


def test_a_record_is_read_at_a_node_that_does_not_hold_its_envelope(
    make_world: MakeWorld,
) -> None:  # SPEC-FED-19
    world = make_world(finality_depth=3, spacing_ms=200)
    first, second, *_ = world.members
    world.start(first, second)
    world.wait_until_linked(1)
    here, there = world[first].connect(), world[second].connect()
    patient = Wallet.create(world.genesis.chain_id, suite=KemSuite.X25519)
    doctor = Wallet.create(world.genesis.chain_id, suite=KemSuite.X25519)
    begun = [
        patient.register(Role.PATIENT),
        doctor.register(Role.PRACTITIONER),
        patient.open_folders("vitals"),
    ]
    for outcome in here.submit(begun):
        outcome.raise_for_status()
    content = os.urandom(3_000_000)
    sealed = here.put_record(patient, "vitals", content)
    world.wait_for(lambda: there.tip().transaction_count == here.tip().transaction_count, "the record there")
    with pytest.raises(AccessRefused):
        there.read_record(doctor, sealed.record, Purpose.TREATMENT)
    blobs = there.status()["blobs"]
    assert blobs["packed"] + blobs["large"] == 0
    assert there.read_record(patient, sealed.record, Purpose.TREATMENT) == content
    blobs = there.status()["blobs"]
    assert blobs["packed"] + blobs["large"] == 1, "from now on it holds it"


def test_one_that_joins_late_begins_with_a_snapshot(
    make_world: MakeWorld,
) -> None:  # SPEC-FED-20, SPEC-FED-21
    settings = {"FASTLEDGER_NODE__FEDERATION__SNAPSHOT_BLOCKS": "20"}
    world = make_world(finality_depth=3, spacing_ms=250, settings=settings)
    *early, late = world.members
    config = world[late].folder / "node.toml"
    cli = Cli(world.folder)
    world.start(*early[:2])
    outcomes = world[early[0]].connect().submit(registrations(world, 200))
    world.wait_for(
        lambda: all(list((world[name].ledger / "snapshots").glob("*20")) for name in early[:2]), "snapshots"
    )
    assert "by 2 at most" in cli.error("node", "fetch-snapshot", "--config", config)["message"]
    world.start(early[2])
    world.wait_for(
        lambda: all(len(list((world[name].ledger / "snapshots").glob("*40"))) == 1 for name in early),
        "snapshots of a quorum",
        timeout_s=120,
    )
    assert cli.json("node", "fetch-snapshot", "--config", config)["height"] >= 40
    world[late].start().connect()
    status = world[late].call("ledger.status")
    assert status["first_height"] >= 41 and status["transactions"] == len(outcomes)
    world.end_mining()
    world.wait_for(lambda: len({m.connect().tip().height for m in world.running()}) == 1, "one final height")
    assert len({member.state_root() for member in world.running()}) == 1
    world[late].stop()
    assert "has blocks" in cli.error("node", "fetch-snapshot", "--config", config)["message"]


def test_a_polite_stranger_is_answered(make_world: MakeWorld) -> None:  # SPEC-FED-16
    world = make_world()
    names = list(world.members)
    victim = world.start(names[0])[names[0]]
    world.wait_for(lambda: victim.status()["tip_height"] >= 2, "blocks")
    with HostilePeer(world.folder / "authority", names[1], victim.peer_port, world.genesis) as peer:
        peer.greet()
        block0 = victim.call("block.header", height=0)["block_id"]
        peer.say(GetHeaders(bytes.fromhex(block0), 10), Inventory(os.urandom(32 * 3)))
        world.wait_for(
            lambda: peer.listen(0.2) and any(isinstance(message, Headers) for message in peer.heard),
            "headers",
        )
    (headers,) = [message for message in peer.heard if isinstance(message, Headers) and message.headers]
    assert len(headers.headers) >= 2
    assert not banned(victim)


def test_a_revoked_organisation_is_cut_off_without_a_restart(make_world: MakeWorld) -> None:  # SPEC-FED-4
    world = make_world()
    first, second, *_ = world.members
    world.start(first, second)
    world.wait_until_linked(1)
    world.authority.revoke(second)
    assert "federation certificates" in world[first].connect().reload()
    world.wait_for(lambda: world[first].status()["peers"] == 0, "the end of the link")
    world.wait_for(
        lambda: world[first].metric("fastledger_federation_links_refused_total") >= 1, "a refused call"
    )
    assert world[first].status()["peers"] == 0


def test_operators_commands(make_world: MakeWorld, tmp_path: Path) -> None:  # SPEC-FED-13, SPEC-CLI-11
    world = make_world(miners=())
    first, second, *_ = world.members
    world.start(first, second)
    world.wait_until_linked(1)
    cli, url = Cli(tmp_path), world[first].url
    checked = cli.json("config", "check", world[first].folder / "node.toml")
    assert checked["organisation"] == first and checked["federation_certificate_not_after_ms"] > 0
    msgspec.convert(world[first].call("federation.status"), FederationStatusView)
    msgspec.convert(world[first].call("federation.peers"), PeersView)
    (peer,) = cli.json("peers", "list", url)["peers"]
    assert peer["organisation"] == second and peer["ready"]
    assert second in cli.run("peers", "list", url).output
    assert cli.json("mine", "status", url)["on"] is False
    assert cli.json("mine", "on", url)["on"] is True
    world.wait_for(lambda: world[second].status()["tip_height"] >= 2, "blocks", timeout_s=90)
    mining = cli.json("mine", "off", url)
    assert mining["on"] is False and mining["blocks_found"] >= 1
    assert cli.json("peers", "ban", url, "--organisation", second, "--for", "2h")["duration_ms"] == 7_200_000
    world.wait_for(lambda: world[first].status()["peers"] == 0, "the end of the link")
    (ban,) = cli.json("peers", "list", url)["bans"]
    assert (ban["kind"], ban["name"], ban["why"]) == ("organisation", second, "operator")
    assert cli.json("peers", "unban", url, "--organisation", second) == {"unbanned": second}
    world.wait_until_linked(1)
    assert cli.error("peers", "unban", url, "--address", "192.0.2.1")["error"]
    assert cli.error("peers", "ban", url)["error"] == "bad-query"
    assert cli.json("peers", "add", url, "127.0.0.1:9")["added"] == "127.0.0.1:9"
    assert cli.error("peers", "add", url, "nonsense")["error"] == "bad-query"
    shown = cli.json("top", url, "--interval", "0.2")
    assert shown["peers"] == 1 and shown["tip_height"] >= 2
    assert "reorganisations" in cli.run("top", url, "--once", "--interval", "0.2").output
    assert cli.json("node", "status", "--config", world[first].folder / "node.toml")["engine"] == "pow"


def test_a_node_of_one_organisation_has_no_peers(tmp_path: Path) -> None:  # SPEC-FED-2
    cli = Cli(tmp_path)
    cli.run("node", "init", tmp_path / "clinic")
    config = tmp_path / "clinic" / "node.toml"
    config.write_text(config.read_text().replace("# mine = false", "mine = true"))
    failed = cli.run("node", "start", "--config", config, code=3)
    assert "federation: the ledger's chain is one organisation's" in failed.stderr


def test_the_demo_ends_with_one_chain(tmp_path: Path) -> None:  # SPEC-FED-15
    cli = Cli(tmp_path)
    answer = cli.json("net-demo", "--together", 2, "--parted", 3)
    assert answer["agreed"] and answer["registrations"] > 50
    assert len(answer["tips"]) == len(answer["state_roots"]) == 1
    assert set(answer["missing"].values()) == {0}
    assert "each half could" in cli.error("net-demo", "--parted", 600)["message"]


def test_organisations_found_a_chain_by_hand(tmp_path: Path) -> None:  # SPEC-FED-17
    cli = Cli(tmp_path)
    keys = [cli.json("node", "key", tmp_path / name)["public_key"] for name in ("clinic", "lab")]
    assert cli.error("node", "key", tmp_path / "lab")
    cli.run("keys", "create")
    cli.run("keys", "new", "regulator")
    cli.json("keys", "public", "regulator", "-o", tmp_path / "regulator.json")
    document = tmp_path / "genesis.cbor"
    proposers = [argument for key in keys for argument in ("--proposer", key)]
    made = cli.json(
        *("genesis", "create", document, *proposers, "--authority", tmp_path / "regulator.json"),
        *("--spacing-ms", 2_000, "--finality-depth", 20, "--first-hashes", 1_000, "--reward", "0:50"),
    )
    assert (made["rule_set"], made["activation_quorum"]) == (REGISTRY.newest_rule_set, 1)
    older = [*proposers, "--authority", tmp_path / "regulator.json", "--rule-set", 1]
    chosen = cli.json("genesis", "create", tmp_path / "older.cbor", *older, "--activation-quorum", 1)
    assert (chosen["rule_set"], chosen["activation_quorum"]) == (1, 1)
    refused = cli.error("genesis", "create", tmp_path / "g", *older, "--activation-quorum", 2)
    assert refused["error"] == "bad-genesis"
    assert made["proposers"] == keys and made["rewards"] == ["0:50"] and made["finality_depth"] == 20
    assert cli.json("genesis", "show", document)["digest"] == made["digest"]
    assert cli.error("genesis", "create", document, *proposers)["error"] == "bad-genesis"
    for name in ("clinic", "lab"):
        joined = cli.json("node", "init", tmp_path / name, "--genesis", document)
        assert joined["chain_id"] == made["chain_id"]
        assert not (tmp_path / name / "node.key").exists()
        assert (tmp_path / name / "ledger" / "node.key").stat().st_mode & 0o077 == 0
    assert (
        "missing" in cli.error("node", "init", tmp_path / "other", "--genesis", document, code=3)["message"]
    )
    cli.json("node", "key", tmp_path / "stranger")
    assert (
        cli.error("node", "init", tmp_path / "stranger", "--genesis", document)["error"] == "not-a-proposer"
    )


def test_a_bad_genesis_is_refused(tmp_path: Path) -> None:  # SPEC-FED-17
    cli = Cli(tmp_path)
    key = cli.json("node", "key", tmp_path / "clinic")["public_key"]
    twice = ("--proposer", key, "--proposer", key)
    assert cli.error("genesis", "create", tmp_path / "g", *twice)["error"] == "bad-genesis"
    assert cli.error("genesis", "create", tmp_path / "g", "--proposer", key, "--reward", "5:1")["error"]
    (tmp_path / "authority").write_text('{"key": "00"}')
    bad = ("--proposer", key, "--authority", tmp_path / "authority")
    assert cli.error("genesis", "create", tmp_path / "g", *bad)["error"] == "bad-genesis"
    assert not (tmp_path / "g").exists()
