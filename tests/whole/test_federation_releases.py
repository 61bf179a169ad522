"""Four organisations, three of which were upgraded in time: through an activation under load (SPEC-RULE-11)."""

from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import beacon
import pytest
from beacon import NOTICE, Dim, Light, declared
from test_federation import Submitters, registrations, settle

from fastledger import Client
from fastledger.cli.demo.organisations import Member, NetOptions, NetWorld
from fastledger.errors import ReleaseNeededError
from fastledger.subjects.chain import ChainActivate

DEPTH = 5
ID = bytes(range(16))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[NetWorld]:
    made = NetWorld(tmp_path / "net", NetOptions(spacing_ms=400, finality_depth=DEPTH))
    yield made
    made.close()


def of_release(member: Member, newest: int) -> None:
    """The member's node is of a release that knows the rule sets up to ``newest``, from its next start on."""
    member.program = (beacon.__file__, str(newest))
    member.environment = {"PYTHONPATH": str(Path(beacon.__file__).parents[2])}


def is_ready(member: Member) -> bool:
    try:
        with urlopen(f"{member.url}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except HTTPError:
        return False


def nobody_is_banned(world: NetWorld) -> None:
    for member in world.running():
        found = member.connect().peers()
        assert found["bans"] == [] and all(peer["points"] == 0 for peer in found["peers"]), member.name


def test_who_is_left_behind_stops_cleanly_and_goes_on_after_its_upgrade(world: NetWorld) -> None:
    *new, old = world.members.values()
    for member in new:
        of_release(member, 2)
    of_release(old, 1)
    world.start()
    world.wait_until_linked(3)
    submitters = Submitters(world)
    with declared():
        vote, height = schedule(world, old)
        first = new[0].connect()
        status = first.federation_status()
        assert status["rules"]["scheduled"] == {"rule_set": 2, "height": height, "release": "9.1.0"}
        assert status["left_behind"] == [old.name]
        assert new[0].metric("fastledger_federation_peers_left_behind") == 1
        assert (status["rules"]["newest_known"], old.status()["rules"]["newest_known"]) == (2, 1)
        world.wait_for(lambda: first.tip().height >= height + DEPTH, "the activation to be final", timeout_s=60)
        taken = stopped_before(world, old, height)
        # The new kind, and the old one with its new meaning, on those who went on.
        lights = [world.regulator.sign(body).encoded for body in (Dim(beacon=ID), Light(beacon=ID, level=7))]
        outcomes = first.submit(lights, wait="durable")
        assert [outcome.code for outcome in outcomes] == [0, 0]
    nobody_is_banned(world)
    assert old.stop() == 0
    of_release(old, 2)
    old.start().connect()
    world.wait_for(lambda: is_ready(old), "the upgraded node to be ready", timeout_s=60)
    world.wait_for(lambda: old.connect().tip().height > height, "the upgraded node beyond the height")
    expected = {vote, *taken, *(outcome.txid for outcome in outcomes)}
    settle(world, submitters.stop() | expected)
    assert old.call("beacon.get", beacon=ID.hex())["level"] == 1_007
    assert old.connect().status()["rules"]["in_force"] == 2
    nobody_is_banned(world)


def schedule(world: NetWorld, through: Member) -> tuple[bytes, int]:
    """The authority votes, through the node that cannot follow; returns the vote's id and the height."""
    height = through.connect().tip().height + NOTICE + DEPTH + 10
    vote = world.regulator.sign(ChainActivate(rule_set=2, height=height, release="9.1.0"))
    (outcome,) = through.connect().submit([vote.encoded], wait="durable")
    outcome.raise_for_status()
    return outcome.txid, height


def stopped_before(world: NetWorld, old: Member, height: int) -> list[bytes]:
    """The old node runs, reads, and takes nothing; returns what it had made durable."""
    assert old.runs and not is_ready(old)
    with Client.connect(old.url) as client:
        with pytest.raises(ReleaseNeededError) as error:
            client.submit(registrations(world, 1), wait="durable")
        assert "install release 9.1.0 or newer" in str(error.value)
        status = client.status()
        assert status["state"] == "outdated" and "9.1.0" in status["rules"]["release_needed"]
        assert client.federation_status()["tip_height"] == height - 1
        return [entry.txid for entry in client.query(limit=1_000).entries]
