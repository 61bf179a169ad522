"""Microseconds per resource at the FHIR border: reading, validating, describing.

Input is the generated hospital, or the sources named on the command line (only counts and sizes are printed).
Reading files and compression are excluded. ``--tiny`` runs in a second, for tests.

    python benchmarks/bench_fhir.py [--tiny] [SOURCE …]
"""

import hashlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import msgspec

from fastledger.errors import FhirError
from fastledger.gateway.fhir import FHIR_VERSION, Validated, describe, validate_many
from fastledger.gateway.fhir_invariants import check
from fastledger.gateway.sources import read_resources
from fastledger.workload import generate

BATCH_RESOURCES = 256
RESOURCES_MAX = 20_000


def load(paths: list[str], patients: int) -> list[bytes]:
    """The resources to work on, at most ``RESOURCES_MAX``."""
    if not paths:
        return [item.raw for bundle in generate(1, patients) for item in bundle.resources][:RESOURCES_MAX]
    raws = []
    for item in read_resources(paths):
        if not isinstance(item, FhirError):
            raws.append(item.raw)
        if len(raws) == RESOURCES_MAX:
            break
    return raws


def validate_all(raws: list[bytes], threads: int) -> int:
    """How many are valid, in batches."""
    valid = 0
    for start in range(0, len(raws), BATCH_RESOURCES):
        outcomes = validate_many(raws[start : start + BATCH_RESOURCES], threads)
        valid += sum(isinstance(outcome, Validated) for outcome in outcomes)
    return valid


def measure(name: str, work: Callable[[], object], count: int, repeats: int) -> None:
    """Print minimum, median and maximum over the repeats, in microseconds per resource."""
    figures = []
    for _ in range(repeats):
        start_ns = time.perf_counter_ns()
        work()
        figures.append((time.perf_counter_ns() - start_ns) / count / 1_000)
    print(f"{name:<34}{min(figures):>9.1f}{statistics.median(figures):>9.1f}{max(figures):>9.1f}")


def main(arguments: list[str]) -> None:
    """Run every stage over the same resources."""
    tiny = "--tiny" in arguments
    paths = [item for item in arguments if not item.startswith("-")]
    raws = load(paths, 2 if tiny else 100)
    repeats = 1 if tiny else 5
    decoded = [msgspec.json.decode(raw) for raw in raws]
    valid = validate_all(raws, 1)
    terms = hashlib.sha256(repr([describe(node).terms for node in decoded]).encode()).hexdigest()
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}")
    print(f"FHIR {FHIR_VERSION}, fhirkit-rs {version('fhirkit-rs')}, msgspec {msgspec.__version__}")
    mean_bytes = sum(map(len, raws)) / len(raws)
    print(f"{len(raws)} resources of {mean_bytes:.0f} bytes in the mean, {valid} valid, terms {terms[:16]}")
    print(f"{'us per resource':<34}{'min':>9}{'median':>9}{'max':>9}")
    count = len(raws)
    measure("decode", lambda: [msgspec.json.decode(raw) and None for raw in raws], count, repeats)
    measure(
        "codes and invariants",
        lambda: [check(node, raw) for node, raw in zip(decoded, raws, strict=True)],
        count,
        repeats,
    )
    measure("validate_many, 1 thread", lambda: validate_all(raws, 1), count, repeats)
    measure("validate_many, a thread per core", lambda: validate_all(raws, 0), count, repeats)
    measure("describe, decoded", lambda: [describe(node) for node in decoded], count, repeats)
    measure("describe, bytes", lambda: [describe(raw) for raw in raws], count, repeats)
    if not paths:
        measure("generate", lambda: list(generate(1, 2 if tiny else 100)), count, repeats)


if __name__ == "__main__":
    main(sys.argv[1:])
