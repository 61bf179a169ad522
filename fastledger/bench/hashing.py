"""SHA-256, trees and work: each variant that this CPU has beside hashlib, and pymerkle where it is installed."""

from array import array
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from random import Random

from fastledger._native import hashing as native_hashing
from fastledger.bench.measure import SEED, Contestant, Row, compete
from fastledger.crypto.hashing import sha256_many
from fastledger.crypto.merkle import MerkleTree, merkle_root
from fastledger.crypto.work import header_hashes, search_nonce

MESSAGE_BYTES = 300
PYMERKLE_LEAVES_MAX = 2**12  # pymerkle takes some 30 us a leaf


def variants(run: Callable[[], bytes], items: int) -> list[Contestant]:
    """Returns one contestant for each variant that is usable here, fastest first."""
    force = native_hashing.force_backend
    return [Contestant(name, run, items, partial(force, name)) for name in native_hashing.backends()]


def all_threads(run: Callable[[], bytes], items: int) -> Contestant:
    """Returns a contestant that uses the best variant, with a thread for each CPU."""
    return Contestant("best, all CPUs", run, items, partial(native_hashing.force_backend, None))


def hashlib_root(leaves: bytes) -> bytes:
    """Computes by hashlib the RFC 9162 root of n x 32 bytes of entries, n a power of two."""
    level = [sha256(b"\x00" + leaves[i : i + 32]).digest() for i in range(0, len(leaves), 32)]
    while len(level) > 1:
        level = [sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level), 2)]
    return level[0]


def hashlib_bitcoin_root(txids: bytes) -> bytes:
    """Computes by hashlib Bitcoin's root of n x 32 bytes of transaction ids, n a power of two."""
    level = [txids[i : i + 32] for i in range(0, len(txids), 32)]
    while len(level) > 1:
        level = [sha256(sha256(level[i] + level[i + 1]).digest()).digest() for i in range(0, len(level), 2)]
    return level[0]


def hashlib_search(header80: bytes, target: int, start: int, count: int) -> int | None:
    """Searches nonces by hashlib as `search_nonce` does; copying a midstate would cost more than it saves."""
    prefix = header80[:76]
    for nonce in range(start, start + count):
        first = sha256(prefix + nonce.to_bytes(4, "little")).digest()
        if int.from_bytes(sha256(first).digest(), "little") <= target:
            return nonce
    return None


def pymerkle_root(leaves: bytes) -> bytes:
    """Computes the RFC 9162 root by pymerkle, whose tree has the same shape and prefixes."""
    from pymerkle import InmemoryTree

    tree = InmemoryTree(algorithm="sha256")
    for i in range(0, len(leaves), 32):
        tree.append_entry(leaves[i : i + 32])
    return bytes(tree.get_root())


def messages_rows(count: int, rounds: int) -> list[Row]:
    """Measures ``sha256_many`` over messages of 300 bytes; the peer hashes a list of ready ``bytes``."""
    buffer = Random(SEED + count).randbytes(MESSAGE_BYTES * count)
    messages = [buffer[i : i + MESSAGE_BYTES] for i in range(0, len(buffer), MESSAGE_BYTES)]
    offsets = array("Q", range(0, len(buffer) + 1, MESSAGE_BYTES))
    peer = Contestant(
        "hashlib loop", lambda: b"".join([sha256(message).digest() for message in messages]), count
    )
    ours = variants(lambda: sha256_many(buffer, offsets), count)
    return compete(f"SHA-256 of {count:,} x {MESSAGE_BYTES} bytes", "message", [peer, *ours], rounds)


def mixed_rows(count: int, rounds: int) -> list[Row]:
    """Measures ``sha256_many`` over messages of 20 to 2,000 bytes, mixed: no lane may wait for the longest."""
    random = Random(SEED)
    messages = [random.randbytes(random.randrange(20, 2_000)) for _ in range(count)]
    offsets = array("Q", [0])
    for message in messages:
        offsets.append(offsets[-1] + len(message))
    buffer = b"".join(messages)
    blocks = sum((len(message) + 8) // 64 + 1 for message in messages)
    peer = Contestant(
        "hashlib loop", lambda: b"".join([sha256(message).digest() for message in messages]), blocks
    )
    ours = variants(lambda: sha256_many(buffer, offsets), blocks)
    return compete(f"SHA-256 of {count:,} x 20 to 2,000 bytes", "block of 64", [peer, *ours], rounds)


def root_rows(leaf_count: int, rounds: int) -> list[Row]:
    """Measures the RFC 9162 root over one buffer of 32-byte entries."""
    leaves = Random(SEED).randbytes(32 * leaf_count)
    contestants = [
        Contestant("hashlib loop", lambda: hashlib_root(leaves), leaf_count),
        *variants(lambda: merkle_root(leaves, threads=1), leaf_count),
        all_threads(lambda: merkle_root(leaves), leaf_count),
    ]
    if leaf_count <= PYMERKLE_LEAVES_MAX and find_spec("pymerkle") is not None:
        contestants.append(Contestant("pymerkle", lambda: pymerkle_root(leaves), leaf_count))
    return compete(f"RFC 9162 root, {leaf_count:,} leaves", "leaf", contestants, rounds)


def bitcoin_root_rows(leaf_count: int, rounds: int) -> list[Row]:
    """Measures Bitcoin's root over one buffer of transaction ids."""
    txids = Random(SEED + 1).randbytes(32 * leaf_count)
    contestants = [
        Contestant("hashlib loop", lambda: hashlib_bitcoin_root(txids), leaf_count),
        *variants(lambda: merkle_root(txids, "bitcoin", threads=1), leaf_count),
        all_threads(lambda: merkle_root(txids, "bitcoin"), leaf_count),
    ]
    return compete(f"Bitcoin root, {leaf_count:,} txids", "txid", contestants, rounds)


def proofs_rows(leaf_count: int, rounds: int) -> list[Row]:
    """Measures all inclusion proofs of a tree in one pass, beside asking the same tree for one after the other."""
    tree = MerkleTree(Random(SEED).randbytes(32 * leaf_count))
    contestants = [
        Contestant(
            "one by one",
            lambda: b"".join(node for i in range(leaf_count) for node in tree.inclusion_proof(i)),
            leaf_count,
        ),
        Contestant("one pass", lambda: tree.inclusion_proofs().buffer, leaf_count),
    ]
    return compete(f"all inclusion proofs, {leaf_count:,} leaves", "proof", contestants, rounds)


def headers_rows(count: int, rounds: int) -> list[Row]:
    """Measures the SHA256d of block headers of 80 bytes."""
    headers = Random(SEED).randbytes(80 * count)
    items = [headers[i : i + 80] for i in range(0, len(headers), 80)]
    peer = Contestant(
        "hashlib loop", lambda: b"".join([sha256(sha256(item).digest()).digest() for item in items]), count
    )
    ours = variants(lambda: header_hashes(headers), count)
    return compete(f"hashes of {count:,} headers", "header", [peer, *ours], rounds)


def _encoded(nonce: int | None) -> bytes:
    return b"none" if nonce is None else nonce.to_bytes(4, "little")


def work_rows(nonce_count: int, rounds: int) -> list[Row]:
    """Measures a search that goes through all its nonces; hashlib goes through the last 64th of them."""
    header = Random(SEED).randbytes(80)
    target = 2**256 // 2**63  # met by one header in 2^63, and not by this one
    peer_count = max(1, nonce_count // 64)
    contestants = [
        Contestant(
            "hashlib loop",
            lambda: _encoded(hashlib_search(header, target, nonce_count - peer_count, peer_count)),
            peer_count,
        ),
        *variants(lambda: _encoded(search_nonce(header, target, 0, nonce_count)), nonce_count),
        all_threads(
            lambda: _encoded(search_nonce(header, target, 0, nonce_count, threads=None)), nonce_count
        ),
    ]
    return compete(f"nonce search, {nonce_count:,} nonces", "hash", contestants, rounds)


def rows(quick: bool) -> list[Row]:
    """Runs every benchmark of this module, with large inputs, or (``quick``) with inputs small enough for a test."""
    rounds = 1 if quick else 5
    try:
        found = []
        for count in (1, 64) if quick else (1, 8, 64, 1_000, 100_000):
            found += messages_rows(count, rounds)
        found += mixed_rows(100 if quick else 10_000, rounds)
        for leaves in (2**6,) if quick else (2**10, 2**20):
            found += root_rows(leaves, rounds)
            found += bitcoin_root_rows(leaves, rounds)
        found += proofs_rows(2**5 if quick else 2**12, rounds)
        found += headers_rows(64 if quick else 10_000, rounds)
        found += work_rows(2**10 if quick else 2**22, rounds)
        return found
    finally:
        native_hashing.force_backend(None)
