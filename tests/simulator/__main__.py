"""Runs seeds: ``python -m simulator SEED``, ``SEED:SEED`` for a range, ``name=value`` to change an option.

Exit status 1 where a run fails; its seed, options and last events are printed. ``-v`` prints the whole trace.
"""

import gc
import sys
import time
from collections import Counter

from simulator.options import MINUTE_MS, Options
from simulator.run import Report, Run


def main(arguments: list[str]) -> int:
    """Runs what the arguments say."""
    seeds = range(100)
    changes = {}
    verbose = False
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if equals:
            changes[name] = Options.parse(name, text)
        elif argument == "-v":
            verbose = True
        else:
            first, colon, last = argument.partition(":")
            seeds = range(int(first), int(last) if colon else int(first) + 1)
    follow = print if verbose else None
    gc.set_threshold(100_000)  # a run makes many small objects and few cycles
    started = time.monotonic()
    failed: list[Report] = []
    tally: Counter[str] = Counter()
    for seed in seeds:
        report = Run(Options.draw(seed).with_changes(**changes), follow=follow).execute()
        count(report, tally)
        if report.failure:
            failed.append(report)
            print(report.text(), flush=True)
    summary(len(seeds), failed, tally, time.monotonic() - started)
    if len(seeds) == 1 and not failed:
        print(f"digest {report.digest}")
    return 1 if failed else 0


def count(report: Report, tally: Counter[str]) -> None:
    """Adds a run to the sums."""
    tally["minutes"] += report.virtual_ms // MINUTE_MS
    tally["events"] += report.events
    tally["blocks"] += max(report.heights, default=0)
    tally["transactions"] += report.transactions
    tally["reorganisations"] += report.reorganisations
    tally["deepest"] = max(tally["deepest"], report.deepest)
    tally["bans"] += report.bans
    tally["finality conflicts"] += report.finality_conflicts
    tally["activations"] += report.activated
    tally["nodes left behind"] += report.left_behind
    for kind, times in report.struck.items():
        tally[f"fault {kind}"] += times


def summary(runs: int, failed: list[Report], tally: Counter[str], seconds: float) -> None:
    """What all runs came to."""
    print(
        f"{runs} seeds in {seconds:.0f} s, {tally['minutes'] / max(seconds, 1e-9) * 60:,.0f} virtual minutes a minute"
    )
    print(", ".join(f"{name} {number:,}" for name, number in sorted(tally.items())))
    print(f"failed: {[report.seed for report in failed]}" if failed else "no run failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
