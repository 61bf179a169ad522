"""Writes ``ledger-v1.tar.xz``: a ledger directory as release 0.1.0 of the formats (log 1, index 1, blobs 1) wrote it.

Run with the code of commit 0886714 (``PYTHONPATH=.:tests python tests/vectors/make_ledger.py``); ``test_upgrade.py``
opens it with the present code. It is not written again after a change of format: a new one is added beside it.
The directory is copied while the ledger is open, as a kill would leave it: the index is behind the log. Segments and
packs are small, which is a matter of their headers. ``expected.json`` inside tells what must come back. The keys are
worth nothing.
"""

import json
import shutil
import tarfile
import tempfile
from pathlib import Path

from feeds import fill, small_files, submit_next
from world import make_world

TARGET = Path(__file__).with_name("ledger-v1.tar.xz")


def make(folder: Path) -> None:
    """The directory ``folder/ledger`` and what is in it."""
    with small_files():
        world = make_world(folder / "open")
        feeds, history = fill(world, 15, seed=1)
        world.ledger.checkpoint()
        for number in range(5):
            submit_next(world.ledger, feeds[number % 2], history)
        ledger = world.ledger
        shutil.copytree(world.path, folder / "ledger")
        entered = [
            [txid.hex(), int(code)]
            for planned in history.batches
            for txid, code in zip(planned.txids, planned.codes, strict=True)
            if txid in planned.entering
        ]
        expected = {
            "chain_id": ledger.chain_id.hex(),
            "height": ledger.height,
            "head": ledger.head.hex(),
            "state_root": ledger.block(ledger.height).body.state_root.hex(),
            "transactions": ledger.transaction_count,
            "entered": entered[::5],
            "erased": sorted(record.hex() for record in history.erased),
            "segments": len(list((world.path / "log").iterdir())),
        }
        ledger.close()
    (folder / "expected.json").write_text(json.dumps(expected, indent=1))


def main() -> None:
    """Packs it, sparse zeros and all, into ``TARGET``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        with tarfile.open(TARGET, "w:xz", preset=9) as tar:
            tar.add(folder / "expected.json", "expected.json")
            tar.add(folder / "ledger", "ledger")
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
