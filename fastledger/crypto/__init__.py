"""Cryptographic recipes. Hashing, trees, work and batch verification run in native code, one GIL release a call."""

from typing import Any

from fastledger._native.ecdsa import ecdsa_backend, verify_batch
from fastledger._native.work import SearchControl
from fastledger.crypto.hashing import hashing_backend, sha256_many
from fastledger.crypto.merkle import (
    HistoryTree,
    consistency_proof,
    inclusion_proof,
    leaf_hashes,
    merkle_root,
    verify_consistency,
    verify_inclusion,
)
from fastledger.crypto.work import NonceSearch, search_nonce

__all__ = [
    "HistoryTree",
    "NonceSearch",
    "SearchControl",
    "backend",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hashes",
    "merkle_root",
    "search_nonce",
    "sha256_many",
    "verify_batch",
    "verify_consistency",
    "verify_inclusion",
]


def backend() -> dict[str, Any]:
    """Reports the kernels that run here: ``sha256`` variant, CPU features, ECDSA library, its threads and key cache.
    """
    return {**hashing_backend(), "ecdsa": ecdsa_backend()}
