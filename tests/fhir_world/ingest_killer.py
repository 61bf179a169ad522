"""Kills an ingest with SIGKILL at random points and runs it again, many times over one ledger.

    python ingest_killer.py FOLDER ROUNDS SEED

Every round has lines of its own: new patients, new resources, some of the last round's unchanged and some changed, and
some that are nobody's. Each is ingested by a forked child that dies somewhere: after a random time, or right before or
after a random one of its submissions, writes of the map, or savings of keys. Some die again while they go on. Then it
runs to its end, and the ledger must hold each resource once, at the version that it has by then. Prints what was found.
This process itself never opens a ledger, so that its children have no threads of the dead.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hospital import Hospital, hospital, observation, patient, write_ndjson

from fastledger import Keystore, Ledger, Wallet
from fastledger.client.ingest import run as ingest_module
from fastledger.client.ingest.resource_map import ResourceMap
from fastledger.subjects.record import RECORDS

NEW, AGAIN, CHANGED, NOBODYS = 30, 8, 8, 3


def lines_of(number: int) -> list[dict[str, Any]]:
    """The resources of a round."""
    whose = f"Patient/p{number}"
    found = [patient(f"p{number}")]
    found += [observation(whose, id=f"r{number}n{index}") for index in range(NEW)]
    found += [observation(whose, valueString=f"without id {number} {index}") for index in range(4)]
    found += [observation(f"urn:uuid:{number}", id=f"r{number}x{index}") for index in range(NOBODYS)]
    if number:
        before = f"Patient/p{number - 1}"
        found += [observation(before, id=f"r{number - 1}n{index}") for index in range(AGAIN)]
        found += [
            observation(before, id=f"r{number - 1}n{NEW - 1 - index}", valueString=f"changed {number}")
            for index in range(CHANGED)
        ]
    return found


def expected(rounds: int) -> tuple[int, int]:
    """How many records there are after so many rounds, and how many versions of them."""
    records = rounds * (1 + NEW + 4 + NOBODYS)
    return records, records + (rounds - 1) * CHANGED


def in_child(work: Callable[[], None], die_after_s: float | None = None) -> bool:
    """Runs ``work`` in a fork of this process; whether it came to its end."""
    child = os.fork()
    if not child:
        try:
            if die_after_s is not None:
                timer = threading.Timer(die_after_s, lambda: os.kill(os.getpid(), signal.SIGKILL))
                timer.daemon = True
                timer.start()
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed")
    return os.WIFEXITED(status)


def dying(owner: type, name: str, call: int, after: bool) -> None:
    """Has the process die before or after its n-th call of a method."""
    method = getattr(owner, name)
    calls = 0

    def watched(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = method(*arguments, **more)
        if calls == call and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, name, watched)


PLACES = ((Ledger, "submit"), (ResourceMap, "plan"), (ResourceMap, "settle"), (Keystore, "save"))


def main(folder: Path, rounds: int, seed: int) -> None:
    """Plays all the rounds and prints the result in JSON."""
    rng = random.Random(seed)
    ingest_module.BATCH_RECORDS = 20
    made = folder / "made"
    made.mkdir()

    def create() -> None:
        with hospital(made):
            pass

    in_child(create)

    def ingest(path: Path) -> Callable[[], None]:
        def work() -> None:
            with Ledger.open(made / "ledger") as ledger:
                regulator = Wallet.create()
                Hospital(ledger, made / "wallets", regulator).ingest([path])

        return work

    points = killed = 0
    whole_s = 0.5
    for number in range(rounds):
        path = write_ndjson(folder / f"{number}.ndjson", *lines_of(number))
        attempts = rng.choice((1, 1, 2, 3))
        for _ in range(attempts):
            points += 1
            if rng.random() < 0.5:
                killed += not in_child(ingest(path), rng.uniform(0.02, whole_s))
                continue
            owner, name = rng.choice(PLACES)
            call, after = rng.randint(1, 5), rng.random() < 0.5

            def work(
                owner: type = owner, name: str = name, call: int = call, after: bool = after, path: Path = path
            ) -> None:
                dying(owner, name, call, after)
                ingest(path)()

            killed += not in_child(work)
        begun = time.monotonic()
        in_child(ingest(path))
        whole_s = 0.5 * whole_s + 0.5 * (time.monotonic() - begun)
    print(json.dumps({"points": points, "killed": killed} | _found(made, folder)))


def _found(made: Path, folder: Path) -> dict[str, int]:
    """What the ledger holds, told by a child through a file."""
    target = folder / "found.json"

    def count() -> None:
        records = versions = erased = 0
        cursor = None
        with Ledger.open(made / "ledger") as ledger:
            while True:
                page = ledger.entities(RECORDS, cursor=cursor, limit=1000)
                for item in page.items:
                    record = item.entity
                    records, versions, erased = records + 1, versions + record.version, erased + record.erased
                cursor = page.next_cursor
                if cursor is None:
                    break
            problems = len(ledger.verify().problems)
        target.write_text(
            json.dumps({"records": records, "versions": versions, "erased": erased, "problems": problems})
        )

    in_child(count)
    found: dict[str, int] = json.loads(target.read_text())
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
