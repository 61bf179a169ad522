"""Every backend that this CPU has gives the same answers on the same inputs, and hashlib's where it has one.

100,000 messages where ``HYPOTHESIS_PROFILE=fuzz`` asks for the long run (`make fuzz`), a few thousand otherwise.
"""

import os
from array import array
from collections.abc import Iterator
from hashlib import sha256
from itertools import accumulate, pairwise
from random import Random

import pytest

from fastledger._native import hashing as native_hashing
from fastledger.crypto.hashing import sha256_many
from fastledger.crypto.merkle import MerkleTree, leaf_hashes, merkle_root
from fastledger.crypto.work import search_nonce

MESSAGES = 100_000 if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 4_000
# Around the edges of blocks and of their padding.
EDGE_SIZES = (0, 1, 4096, *(edge + by for edge in (32, 56, 64, 120, 128, 184) for by in (-2, -1, 0, 1)))


@pytest.fixture(autouse=True)
def best_backend_afterwards() -> Iterator[None]:
    yield
    native_hashing.force_backend(None)


def message_sizes(random: Random, count: int) -> list[int]:
    """Mostly short, a third at edges, a few long enough to outlast all others of a batch."""
    kinds = random.choices(("edge", "short", "long"), (30, 69, 1), k=count)
    ranges = {"short": 400, "long": 9_000}
    return [random.choice(EDGE_SIZES) if kind == "edge" else random.randrange(ranges[kind]) for kind in kinds]


def batches(seed: int, total: int) -> Iterator[tuple[bytes, "array[int]"]]:
    """Batches of one message up to several fillings of the widest kernel's lanes."""
    random = Random(seed)
    while total > 0:
        count = min(total, random.choice((1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100, 500)))
        total -= count
        sizes = message_sizes(random, count)
        yield random.randbytes(sum(sizes)), array("Q", accumulate(sizes, initial=0))


def test_backends_agree_on_messages() -> None:
    # SPEC-HASH-2
    variants = native_hashing.backends()
    for buffer, offsets in batches(1, MESSAGES):
        messages = [buffer[a:b] for a, b in pairwise(offsets)]
        expected = b"".join(sha256(message).digest() for message in messages)
        expected_leaves = b"".join(sha256(b"\x00" + message).digest() for message in messages)
        for name in variants:
            native_hashing.force_backend(name)
            assert sha256_many(buffer, offsets) == expected, (name, list(offsets))
            assert leaf_hashes(buffer, offsets) == expected_leaves, (name, list(offsets))


def test_backends_agree_on_trees() -> None:
    random = Random(2)
    sizes = [*range(1, 40), *(random.randrange(1, 3_000) for _ in range(MESSAGES // 100))]
    for size in sizes:
        leaves = random.randbytes(32 * size)
        answers = set()
        for name in native_hashing.backends():
            native_hashing.force_backend(name)
            roots = merkle_root(leaves), merkle_root(leaves, "bitcoin"), merkle_root(leaves, hashed=True)
            answers.add((*roots, MerkleTree(leaves).inclusion_proofs()))
        assert len(answers) == 1, size


def test_backends_agree_on_nonces() -> None:
    # SPEC-WORK-5
    random = Random(3)
    for _ in range(MESSAGES // 40):
        header, count = random.randbytes(80), random.randrange(1, 200)
        start = random.choice((0, random.randrange(2**32 - count), 2**32 - count))
        target = 2 ** random.randrange(244, 256) - 1
        answers = set()
        for name in native_hashing.backends():
            native_hashing.force_backend(name)
            answers.add(search_nonce(header, target, start, count))
        assert len(answers) == 1, (header.hex(), start, count, target)
