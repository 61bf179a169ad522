"""Compares every path of ``verify_batch`` with libsecp256k1 for a given time, and counts (``make fuzz``).

``FASTLEDGER_FUZZ_SECONDS`` (default 60), ``FASTLEDGER_FUZZ_SEED`` (default: the clock, printed). Exit status 1 on
the first disagreement, whose case is printed in hexadecimal.
"""

import os
import sys
import time
from dataclasses import dataclass, field

from ecdsa_cases import Case, CaseSource, columns

from fastledger._native.ecdsa import (
    ecdsa_backend,
    ecdsa_kernels,
    force_ecdsa,
    parity_hints,
    resize_key_cache,
    verify_batch,
)


@dataclass
class Tally:
    """What was compared, by what it went through."""

    signatures: int = 0
    bad: int = 0
    comparisons: dict[str, int] = field(default_factory=dict)


def disagreements(cases: list[Case], expected: bytes, found: bytes) -> list[Case]:
    return [case for case, theirs, ours in zip(cases, expected, found, strict=True) if theirs != ours]


def compare_paths(source: CaseSource, cases: list[Case], kernel: str, tally: Tally) -> list[Case]:
    """Verify a batch on every path of a kernel; returns the cases whose verdict was another."""
    data = columns(cases)
    force_ecdsa("libsecp")
    expected = verify_batch(*data)
    wrong: list[Case] = []

    def compare(name: str, found: bytes) -> None:
        wrong.extend(disagreements(cases, expected, found))
        tally.comparisons[name] = tally.comparisons.get(name, 0) + len(cases)

    force_ecdsa("any", kernel)
    mask, hints = verify_batch(*data, return_hints=True)
    compare(f"{kernel} any", mask)
    force_ecdsa("known", kernel)
    compare(f"{kernel} known", verify_batch(*data))
    # The randomised batch closes only over good signatures: give it those, then all, with spoiled hints.
    force_ecdsa("randomised", kernel)
    for name, column, width in (("full", hints, 33), ("parity", parity_hints(hints), 1)):
        good = [i for i, ok in enumerate(expected) if ok]
        picked = [cases[i] for i in good]
        chosen = column[:1] + b"".join(column[1 + width * i : 1 + width * (i + 1)] for i in good)
        found = verify_batch(*columns(picked), hints=chosen)
        wrong.extend(disagreements(picked, b"\x01" * len(picked), found))
        tally.comparisons[f"{kernel} {name} hints"] = tally.comparisons.get(
            f"{kernel} {name} hints", 0
        ) + len(picked)
        compare(
            f"{kernel} {name} hints, spoiled", verify_batch(*data, hints=source.spoil_hints(column, width))
        )
    force_ecdsa(None, kernel)
    compare(f"{kernel} auto", verify_batch(*data, hints=hints))
    tally.signatures += len(cases)
    tally.bad += expected.count(0)
    return wrong


def main() -> int:
    seconds = float(os.environ.get("FASTLEDGER_FUZZ_SECONDS", "60"))
    seed = int(os.environ.get("FASTLEDGER_FUZZ_SEED", str(int(time.time()))))
    print(f"seed {seed}, kernels {', '.join(ecdsa_kernels())}", flush=True)
    source, tally = CaseSource(seed), Tally()
    end = time.monotonic() + seconds
    round_number = 0
    while time.monotonic() < end:
        kernel = ecdsa_kernels()[0] if round_number % 8 else source.random.choice(ecdsa_kernels())
        if round_number % 16 == 0:
            resize_key_cache()
        cases = source.batch(source.random.choice((1, 3, 17, 64, 65, 200, 1_000, 2_000)))
        wrong = compare_paths(source, cases, kernel, tally)
        if wrong:
            print(f"{len(wrong)} disagreements, the first: {[part.hex() for part in wrong[0]]}")
            return 1
        round_number += 1
    print(f"{tally.signatures} signatures, {tally.bad} of them bad, no disagreement; verdicts compared:")
    for name, count in sorted(tally.comparisons.items()):
        print(f"  {count:>12,}  {name}")
    print(ecdsa_backend())
    return 0


if __name__ == "__main__":
    sys.exit(main())
