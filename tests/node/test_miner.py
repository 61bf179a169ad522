"""The miner's thread: it finds, renews, is called off at once, rests, and ends."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fastledger.crypto.work import check_work
from fastledger.errors import LedgerHaltedError
from fastledger.node.federation.miner import Miner

EASY, IMPOSSIBLE = 2**248, 0
EASY_BITS = 0x20010000


class Work:
    """A template that is a counter; its headers differ by extra nonce."""

    def __init__(self, number: int, target: int = EASY) -> None:
        self.number = number
        self.target = target
        self.headers: list[int] = []

    def make_header(self, extra_nonce: int) -> bytes:
        self.headers.append(extra_nonce)
        digest = hashlib.sha256(b"%d %d" % (self.number, extra_nonce)).digest()
        return bytes(36) + digest + bytes(4) + EASY_BITS.to_bytes(4, "little") + bytes(4)


class Chain:
    """Gives templates and takes what was found."""

    def __init__(self, target: int = EASY) -> None:
        self.target = target
        self.given: list[Work] = []
        self.found: list[tuple[int, bytes, int]] = []
        self.failure: BaseException | None = None
        self.ready = threading.Event()
        self.ready.set()

    def template(self) -> Work | None:
        if self.failure is not None:
            raise self.failure
        if not self.ready.is_set():
            return None
        self.given.append(Work(len(self.given), self.target))
        return self.given[-1]

    def take(self, template: object, header: bytes, extra_nonce: int) -> None:
        assert isinstance(template, Work)
        self.found.append((template.number, header, extra_nonce))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def miners() -> Iterator[Callable[..., Miner]]:
    made: list[Miner] = []

    def make(chain: Chain, **settings: int) -> Miner:
        made.append(Miner(template=chain.template, found=chain.take, **settings))
        return made[-1]

    yield make
    for miner in made:
        miner.close()


def test_it_finds_block_after_block_while_it_is_on(miners: Callable[..., Miner]) -> None:  # SPEC-FED-11
    chain = Chain()
    miner = miners(chain)
    assert not miner.is_on and miner.hashes_per_second == 0
    miner.switch(on=True)
    wait_until(lambda: len(chain.found) >= 5)
    miner.switch(on=False)
    wait_until(lambda: miner._search is None)
    assert [number for number, _, _ in chain.found] == [work.number for work in chain.given][
        : len(chain.found)
    ]
    for _, header, _ in chain.found:
        assert check_work(header)
    assert miner.blocks_found == len(chain.found)
    assert miner.hashes > 0
    before = len(chain.given)
    time.sleep(0.05)
    assert len(chain.given) == before


def test_a_new_tip_ends_the_search_at_once(miners: Callable[..., Miner]) -> None:  # SPEC-FED-11
    chain = Chain(IMPOSSIBLE)
    miner = miners(chain, renew_ms=3_600_000)
    miner.switch(on=True)
    for count in range(1, 6):
        wait_until(lambda count=count: len(chain.given) == count and miner._search is not None)
        miner.tip_moved()
    wait_until(lambda: len(chain.given) == 6)
    assert not chain.found


def test_arrivals_renew_it_but_not_each(miners: Callable[..., Miner]) -> None:  # SPEC-FED-12
    chain = Chain(IMPOSSIBLE)
    miner = miners(chain, renew_ms=200)
    miner.switch(on=True)
    began = time.monotonic()
    while time.monotonic() - began < 0.9:
        miner.transactions_arrived()
        miner.tick()
        time.sleep(0.002)
    assert 2 <= len(chain.given) <= 6


def test_extra_nonces_roll_over_and_a_share_rests(miners: Callable[..., Miner]) -> None:  # SPEC-FED-11
    chain = Chain(IMPOSSIBLE)
    miner = miners(chain, renew_ms=3_600_000, percent=5)
    miner.switch(on=True)
    wait_until(lambda: bool(chain.given) and len(chain.given[0].headers) >= 4)
    assert chain.given[0].headers == list(range(len(chain.given[0].headers)))
    miner.switch(on=False)
    wait_until(lambda: miner._search is None)


def test_without_a_template_it_waits(miners: Callable[..., Miner]) -> None:  # SPEC-FED-11
    chain = Chain()
    chain.ready.clear()
    miner = miners(chain)
    miner.switch(on=True)
    time.sleep(0.05)
    assert not chain.given
    chain.ready.set()
    miner.tip_moved()
    wait_until(lambda: bool(chain.found))


def test_a_halted_chain_ends_it(miners: Callable[..., Miner]) -> None:  # SPEC-FED-11
    chain = Chain()
    heard: list[BaseException] = []
    miner = Miner(template=chain.template, found=chain.take, failed=heard.append)
    chain.failure = LedgerHaltedError("a sync failed")
    miner.switch(on=True)
    wait_until(lambda: heard == [chain.failure])
    assert not miner.is_on
    miner.switch(on=True)
    assert not miner.is_on
    miner.close()
