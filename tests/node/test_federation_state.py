"""What a node remembers of its peers: whole after any number of writers, and refused where it is damaged."""

import base64
import json
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from node_world import raw_client, serve_world

from fastledger.errors import Code, CorruptionError, InputError
from fastledger.node.federation.driver import Federation
from fastledger.node.federation.state import STATE_NAME, PeerState
from fastledger.peers.scores import Ban, Party, PartyKind

BANS = [
    Ban(Party(PartyKind.ORGANISATION, "lab"), 2_000, "garbage"),
    Ban(Party(PartyKind.ADDRESS, "192.0.2.1"), 3_000, "operator"),
]


def test_bans_and_peers_outlive_the_process(tmp_path: Path) -> None:  # SPEC-FED-10
    state = PeerState(tmp_path)
    assert (state.bans, state.peers) == ((), ())
    state.set_bans(BANS)
    state.add_peer("node.example:8471")
    state.add_peer("node.example:8471")
    again = PeerState(tmp_path)
    assert (list(again.bans), again.peers) == (BANS, ("node.example:8471",))
    again.set_bans([])
    assert PeerState(tmp_path).bans == ()


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:  # SPEC-FED-10
    state = PeerState(tmp_path)

    def write(number: int) -> None:
        for turn in range(10):
            state.add_peer(f"node-{number}-{turn}.example:1")
            state.set_bans(BANS)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(PeerState(tmp_path).peers) == 40
    assert [path.name for path in tmp_path.iterdir()] == [STATE_NAME]


def test_a_block_that_is_found_too_late_does_not_end_the_miner() -> None:  # SPEC-FED-11
    class Chain:
        def call(self, _job: Any) -> "Future[None]":
            future: Future[None] = Future()
            future.set_exception(InputError("its parent is below what is final", code=Code.BELOW_FINAL))
            return future

    told: list[tuple[str, str]] = []
    federation = Federation.__new__(Federation)
    federation._chain = Chain()  # type: ignore[assignment]
    federation._log = SimpleNamespace(warning=lambda event, slug: told.append((event, slug)))  # type: ignore[assignment]
    federation._found(object(), b"", 0)
    assert told == [("federation.block-refused", "below-final")]


async def test_a_node_far_behind_is_not_ready_and_serves(tmp_path: Path) -> None:  # SPEC-FED-22
    async with serve_world(tmp_path / "ledger") as node, raw_client(node.url) as client:
        assert (await client.get("/health/ready"))[0] == 200
        node.service.is_syncing = lambda: True
        status, body = await client.get("/health/ready")
        assert (status, json.loads(body)) == (503, {"status": "syncing"})
        assert (await client.call("ledger.status"))["state"] == "syncing"
        patient = node.world.patient
        transaction = base64.b64encode(patient.open_folders("imaging").encoded).decode()
        assert (await client.call("transaction.submit", transaction=transaction))["status"] == "durable"
        node.service.is_syncing = lambda: False
        assert (await client.get("/health/ready"))[0] == 200


@pytest.mark.parametrize("text", ["", "{", '{"version":2}', '{"bans":[{"kind":"colour"}]}', "\xff"])
def test_a_damaged_file_is_no_file_without_bans(tmp_path: Path, text: str) -> None:  # SPEC-FED-10
    (tmp_path / STATE_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptionError):
        PeerState(tmp_path)
