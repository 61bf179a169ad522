"""The simulator's own clock, network and disk: what they promise to the code that is tested on them."""

import random
from pathlib import Path

import pytest

from fastledger.errors import LedgerHaltedError, StorageFullError
from fastledger.storage.journal import ForkJournal
from fastledger.storage.log import SegmentLog
from simulator.clock import START_MS, NodeClock, Schedule
from simulator.disk import MemoryFiles, SimulatedCrash
from simulator.network import Conditions, Network
from simulator.options import Options

ROOT = Path("/ledger")
CHAIN = b"chain-id"
SEGMENT_BYTES = 16 * 1024


def test_events_run_in_order_and_ties_in_order_of_making() -> None:
    schedule, seen = Schedule(), []
    schedule.at(5, lambda: seen.append("b"))
    schedule.at(3, lambda: schedule.after(2, lambda: seen.append("c")))
    schedule.at(1, lambda: seen.append("a"))
    schedule.at(9, lambda: seen.append("later"))
    schedule.run_until(8)
    assert (seen, schedule.now_ms) == (["a", "b", "c"], 8)


def test_clocks_are_off_drift_and_never_run_backwards() -> None:
    schedule = Schedule()
    clock = NodeClock(schedule, skew_ms=-50, drift_ppm=1_000)
    assert clock() == START_MS - 50
    schedule.run_until(100_000)
    assert clock() == START_MS + 100_000 - 50 + 100
    clock.skew_ms = -10_000
    assert clock() == START_MS + 100_000 - 50 + 100


class Machine:
    """An endpoint that remembers what it heard."""

    def __init__(self, name: str) -> None:
        self.name = self.address = self.organisation = name
        self.listening = True
        self.links: list[int] = []
        self.heard = b""
        self.sent = 0
        self.closed: list[int] = []
        self.failed: list[str] = []

    def link_opened(self, link: int, address: str, organisation: str, *, inbound: bool) -> None:
        self.links.append(link)

    def link_failed(self, address: str) -> None:
        self.failed.append(address)

    def link_received(self, link: int, data: bytes) -> None:
        self.heard += data

    def link_sent(self, link: int, size: int) -> None:
        self.sent += size

    def link_closed(self, link: int) -> None:
        self.closed.append(link)


def two_machines(**conditions: int) -> tuple[Schedule, Network, Machine, Machine]:
    schedule = Schedule()
    network = Network(schedule, random.Random(1), Conditions(**conditions))
    one, other = Machine("one"), Machine("other")
    network.attach(one)
    network.attach(other)
    network.dial(one, "other")
    schedule.run_until(1_000)
    assert one.links == other.links == [1]
    return schedule, network, one, other


def test_a_link_delivers_in_order_in_odd_pieces() -> None:
    schedule, network, one, other = two_machines(piece_bytes_max=3)
    sent = bytes(range(200))
    assert network.send(one, 1, sent[:100]) + network.send(one, 1, sent[100:]) == 200
    network.send(other, 1, b"back")
    schedule.run_until(2_000)
    assert (other.heard, one.heard) == (sent, b"back")


def test_silence_holds_bytes_of_one_way_back_until_it_ends() -> None:
    schedule, network, one, other = two_machines()
    network.silence(one, other)
    network.send(one, 1, b"held ")
    network.send(other, 1, b"back")
    schedule.run_until(10_000)
    assert (other.heard, one.heard) == (b"", b"back")
    network.dial(other, "one")
    schedule.run_until(20_000)
    assert other.failed == ["one"]
    network.send(one, 1, b"and ")
    network.unsilence(one, other)
    network.send(one, 1, b"kept in order")
    schedule.run_until(30_000)
    assert other.heard == b"held and kept in order"


def test_a_receiver_that_is_not_heard_of_stops_its_sender() -> None:
    schedule, network, one, other = two_machines()
    network.silence(one, other)
    for _ in range(3):
        one.sent += network.send(one, 1, bytes(100_000))
        schedule.run_until(schedule.now_ms + 1_000)
    assert one.sent == 100_000
    network.unsilence(one, other)
    schedule.run_until(schedule.now_ms + 1_000)
    assert (one.sent, len(other.heard)) == (300_000, 300_000)


def test_a_broken_link_loses_what_was_on_its_way_and_both_ends_hear_of_it() -> None:
    schedule, network, one, other = two_machines()
    network.send(one, 1, b"lost")
    network.break_link(1)
    schedule.run_until(10_000)
    assert (one.closed, other.closed, other.heard) == ([1], [1], b"")


def test_a_closed_link_delivers_what_was_sent_before() -> None:
    schedule, network, one, other = two_machines()
    network.send(one, 1, b"goodbye")
    network.send(other, 1, b"not heard")
    network.close(one, 1)
    schedule.run_until(10_000)
    assert (one.closed, one.heard, other.closed, other.heard) == ([], b"", [1], b"goodbye")


@pytest.mark.parametrize("seed", range(30))
def test_a_log_on_this_disk_keeps_what_it_synced_through_power_cuts(seed: int) -> None:
    rng = random.Random(seed)
    disk = MemoryFiles(rng)
    SegmentLog.create(ROOT, CHAIN, disk, segment_bytes=SEGMENT_BYTES).close()
    durable: list[bytes] = []
    height = 0
    for _ in range(6):
        log = SegmentLog.open(ROOT, CHAIN, disk, segment_bytes=SEGMENT_BYTES)
        kept = [payload for _, _, payload in log.frames()]
        assert kept[: len(durable)] == durable
        durable, height = kept, len(kept)
        disk.crash_in = rng.randint(1, 40)
        appended = list(durable)
        try:
            while True:
                appended.append(rng.randbytes(rng.randint(1, 3_000)))
                log.append(height, appended[-1])
                height += 1
                if rng.random() < 0.5:
                    log.sync()
                    durable = list(appended)
        except SimulatedCrash:
            disk.power_cut()


def test_a_sync_that_failed_once_lies_afterwards() -> None:
    disk = MemoryFiles(random.Random(3))
    file = disk.create(ROOT / "file")
    disk.fsync_dir(ROOT)
    disk.write(file, [bytes([7]) * 4096], 0)
    disk.sync_fails_in = 0
    with pytest.raises(LedgerHaltedError):
        disk.fdatasync(file)
    disk.fdatasync(file)
    assert disk.read(file, 4096, 0) == bytes([7]) * 4096
    disk.power_cut()
    assert disk.contents(str(ROOT / "file")) != bytes([7]) * 4096


def test_a_full_disk_says_so_and_a_name_needs_a_sync_of_its_directory() -> None:
    disk = MemoryFiles(random.Random(4))
    disk.create_whole(ROOT / "whole", 0, b"content")
    disk.full = True
    file = disk.open(ROOT / "whole", writable=True)
    with pytest.raises(StorageFullError):
        disk.write(file, [bytes(100)], 7)
    assert disk.names(ROOT) == ["whole"]
    disk.full = False
    disk.unlink(ROOT / "whole")
    assert disk.names(ROOT) == []
    disk.power_cut()
    assert set(disk.names(ROOT)) <= {"whole"}


def test_options_follow_from_the_seed_alone() -> None:
    drawn = [Options.draw(seed) for seed in range(200)]
    assert drawn == [Options.draw(seed) for seed in range(200)]
    assert all(options.finality_depth >= options.depth_needed for options in drawn)
    # The swarm leaves every feature out of some runs and brings it into others.
    for name in ("partition_every_ms", "kill_every_ms", "flip_every_ms", "hostile", "rogue", "latecomers"):
        present = sum(bool(getattr(options, name)) for options in drawn)
        assert 0 < present < len(drawn), name


def test_a_journal_that_is_opened_after_a_failed_sync_is_durable_again() -> None:
    """Found by the simulator: what the kernel counted as clean was trusted, and a power cut took it."""
    for seed in range(20):
        disk = MemoryFiles(random.Random(seed))
        journal = ForkJournal.open(ROOT, CHAIN, disk)
        journal.append(bytes([7]) * 3_000)
        disk.sync_fails_in = 0
        with pytest.raises(LedgerHaltedError):
            journal.sync()
        disk.process_ended()
        seen = [payload for _, payload in ForkJournal.open(ROOT, CHAIN, disk).load()]
        disk.power_cut()
        assert [payload for _, payload in ForkJournal.open(ROOT, CHAIN, disk).load()] == seen
