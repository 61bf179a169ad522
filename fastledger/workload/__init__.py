"""A deterministic hospital for demonstrations, benchmarks and tests: ``generate(seed, patients)``."""

from fastledger.workload.generator import generate, transaction_bundle

__all__ = ["generate", "transaction_bundle"]
