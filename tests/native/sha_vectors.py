"""Vectors for the C test of the AVX-512 SHA-256 kernel, by hashlib: ``python sha_vectors.py FILE ITEMS``."""

import random
import struct
import sys
from hashlib import sha256
from pathlib import Path

MAGIC = int.from_bytes(b"SHA1", "little")
LANES = 16
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)


def rotate(word: int, count: int) -> int:
    """Right rotation of 32 bits."""
    return (word >> count | word << (32 - count)) & 0xFFFFFFFF


def round_constants() -> list[int]:
    """FIPS 180-4 section 4.2.2: 32 bits of the fractions of the cube roots of the first 64 primes."""
    primes = [n for n in range(2, 312) if all(n % d for d in range(2, int(n**0.5) + 1))]
    constants = []
    for prime in primes[:64]:
        low, high = 0, 1 << 40
        while low < high:  # floor(2^32 cube root)
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**3 <= prime << 96 else (low, middle - 1)
        constants.append(low & 0xFFFFFFFF)
    return constants


def compress(state: tuple[int, ...], block: bytes) -> tuple[int, ...]:
    """FIPS 180-4 section 6.2.2, for midstates, which hashlib does not show."""
    w = list(struct.unpack(">16I", block))
    for t in range(16, 64):
        s0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3
        s1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10
        w.append((w[t - 16] + s0 + w[t - 7] + s1) & 0xFFFFFFFF)
    a, b, c, d, e, f, g, h = state
    for word, constant in zip(w, round_constants(), strict=True):
        t1 = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + constant + word
        t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))
        a, b, c, d, e, f, g, h = (t1 + t2) & 0xFFFFFFFF, a, b, c, (d + t1) & 0xFFFFFFFF, e, f, g
    return tuple((x + y) & 0xFFFFFFFF for x, y in zip(state, (a, b, c, d, e, f, g, h), strict=True))


def item_bytes(pair: bytes) -> bytes:
    """64 bytes, and the three hashes of them that a kernel gives."""
    leaf, node = sha256(b"\0" + pair[:32]).digest(), sha256(b"\1" + pair).digest()
    return pair + leaf + node + sha256(sha256(pair).digest()).digest()


def stream_bytes(chance: random.Random, size: int) -> bytes:
    """Sixteen messages of one size, padded, and their digests."""
    messages = [chance.randbytes(size) for _ in range(LANES)]
    blocks = (size + 8) // 64 + 1
    padded = [(m + b"\x80").ljust(64 * blocks - 8, b"\0") + (8 * size).to_bytes(8, "big") for m in messages]
    digests = b"".join(sha256(message).digest() for message in messages)
    return struct.pack("<Q", blocks).ljust(64, b"\0") + b"".join(padded) + digests


def hash_high(header76: bytes, nonce: int) -> int:
    """The most significant 32 bits of a header hash as a little-endian integer."""
    digest = sha256(sha256(header76 + nonce.to_bytes(4, "little")).digest()).digest()
    return int.from_bytes(digest[28:], "little")


def search_bytes(chance: random.Random, start: int, count: int, target_high: int) -> bytes:
    """A nonce search with its answer."""
    header = chance.randbytes(76)
    midstate = compress(IV, header[:64])
    hit = next((n for n in range(start, start + count) if hash_high(header, n) <= target_high), None)
    job = struct.pack("<8I3II", *midstate, *struct.unpack(">3I", header[64:]), target_high)
    return job + struct.pack("<4I", start, count, hit is not None, hit or 0)


def make_file(items: int, seed: int = 1) -> bytes:
    """A file with ``items`` items, streams of every size up to 200 bytes and searches that end in every lane."""
    chance = random.Random(seed)
    pairs = [bytes(64), b"\xff" * 64] + [chance.randbytes(64) for _ in range(items - 2)]
    streams = [stream_bytes(chance, size) for size in [*range(200), 1000, 4096]]
    searches = [search_bytes(chance, chance.randrange(2**31), count, 2**32 // 40) for count in range(64)]
    searches += [search_bytes(chance, 2**32 - count, count, 2**32 // 60) for count in (1, 15, 16, 17, 50)]
    searches += [search_bytes(chance, chance.randrange(2**31), max(64, items // 10), 0)]
    searches += [search_bytes(chance, 5, 40, 2**32 - 1)]
    header = struct.pack("<4Q", MAGIC, items, len(streams), len(searches)).ljust(64, b"\0")
    return header + b"".join(item_bytes(pair) for pair in pairs) + b"".join(streams) + b"".join(searches)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(make_file(int(sys.argv[2])))
