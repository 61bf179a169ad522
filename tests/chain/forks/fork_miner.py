"""A process that mines a ledger and says what is certain, until it is killed; the crash tests run it."""

import sys
from pathlib import Path

from fork_world import SPACING_MS, patients
from world import Clock

from fastledger import Ledger, LedgerOptions
from fastledger.chain.forks.chain import ForkChain
from fastledger.chain.forks.mining import mine_block


def main(path: str, rival: str) -> None:
    """Two ledgers of one chain, each told of the other's blocks only now and then, so that both reorganise."""
    clock = Clock(int(sys.argv[3]))
    options = LedgerOptions(clock_ms=clock, verify_threads=1)
    ledgers = [Ledger.open(Path(name), options=options) for name in (path, rival)]
    turn = 0
    while True:
        turn += 1
        clock.advance(SPACING_MS)
        for ledger in ledgers[: 1 + turn % 2]:
            assert ledger.forks is not None
            ledger.begin(patients(ledger.genesis, 2, clock))
            block = ledger.forks.call(lambda chain: mine_block(chain, clock.now_ms)).result()
            print("mined", ledgers.index(ledger), block.block_id.hex(), clock.now_ms, flush=True)
            print("final", ledgers.index(ledger), ledger.height, ledger.head.hex(), flush=True)
        if turn % 3 == 0:
            exchange(ledgers, clock.now_ms)


def exchange(ledgers: list[Ledger], now_ms: int) -> None:
    """Each brings the other what it lacks."""
    for ours, theirs in (ledgers, ledgers[::-1]):
        assert ours.forks is not None and theirs.forks is not None
        locator = ours.forks.call(ForkChain.locator).result()
        headers = theirs.forks.call(lambda chain, ids=locator: chain.headers_after(ids, 500)).result()
        for header in headers:
            block = theirs.forks.call(lambda chain, item=header: chain.block(item.block_id)).result()
            ours.forks.call(lambda chain, item=block: chain.add_block(item, now_ms)).result()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
