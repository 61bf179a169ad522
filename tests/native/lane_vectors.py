"""Vectors for the verifiers of the kernels, with libsecp256k1's verdicts: ``python lane_vectors.py FILE COUNT [SEED]``.

A record carries what the caller of a verifier has already computed (u1, u2, r, the key, a comb table) and what each of
the four must answer: for any key and for a known key, by lanes and by trees. Ordinary signatures, sound or damaged,
must be decided exactly. Crafted ones, whose scalars make partial sums meet, may be left undecided; those made to meet
in a step of one verifier must be by that one, those whose sum is the point at infinity by all.
"""

import random
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from coincurve import PrivateKey, PublicKey
from coincurve._libsecp256k1 import ffi, lib
from coincurve.context import GLOBAL_CONTEXT
from collisions import LAMBDA, STEPS, Sum, apart, signs_of

P = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
HALF_BITS = 128  # of a scalar split by lambda, group.h
TOP16 = 0xA2A9  # the highest 16 bits that such a half can have, rounded up
WINDOWS = (4, 5, 6, 7, 8)  # of the keys' tables; the generator's is the first
GENERATOR_WINDOW = 8
INVALID, VALID, UNDECIDED, MAY_BE_UNDECIDED = 0, 1, 2, 4
VERIFIERS = (("any", "lanes"), ("known", "lanes"), ("any", "trees"), ("known", "trees"))
MAGIC = int.from_bytes(b"LVE2", "little")
HINT_NONE = bytes(33)

Point = tuple[int, int]


@dataclass(frozen=True)
class Record:
    """One signature as scalars, with its key's table index and the answer expected of each of ``VERIFIERS``."""

    u1: int
    u2: int
    r: int
    key: Point
    table: int
    expected: tuple[int, ...]
    hint: bytes

    def to_bytes(self) -> bytes:
        """256 bytes: the C test's ``record``."""
        numbers = b"".join(limbs(number) for number in (self.u1, self.u2, self.r, *self.key))
        return (numbers + struct.pack("<I4B", self.table, *self.expected) + self.hint).ljust(256, b"\0")


def limbs(number: int) -> bytes:
    """Four 64-bit limbs, least significant first."""
    return number.to_bytes(32, "little")


# ---- The curve, by libsecp256k1 ----


def point_of(key: PublicKey) -> Point:
    """Affine coordinates."""
    encoded = key.format(compressed=False)
    return int.from_bytes(encoded[1:33], "big"), int.from_bytes(encoded[33:], "big")


def encode(point: Point) -> bytes:
    """Uncompressed, 65 bytes."""
    return b"\x04" + point[0].to_bytes(32, "big") + point[1].to_bytes(32, "big")


def add(a: Point, b: Point) -> Point:
    """Sum of two affine points that are not each other's negatives."""
    rise, run = (3 * a[0] * a[0], 2 * a[1]) if a == b else (b[1] - a[1], b[0] - a[0])
    slope = rise * pow(run, -1, P) % P
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def lift(x: int) -> Point | None:
    """The point with this x and an even y, if there is one."""
    y = pow(x**3 + 7, (P + 1) // 4, P)
    if x >= P or y * y % P != (x**3 + 7) % P:
        return None
    return x, P - y if y % 2 else y


def multiple(scalar: int, point: Point) -> Point | None:
    """``scalar`` times a point; None for the point at infinity."""
    if scalar % N == 0:
        return None
    return point_of(PublicKey(encode(point)).multiply((scalar % N).to_bytes(32, "big")))


def combination(u1: int, u2: int, key: Point) -> Point | None:
    """u1 G + u2 Q, None at infinity."""
    a, b = multiple(u1, GENERATOR), multiple(u2, key)
    if a is None or b is None:
        return a or b
    return None if a[0] == b[0] and a[1] != b[1] else add(a, b)


GENERATOR = point_of(PrivateKey((1).to_bytes(32, "big")).public_key)


def verify(digest: bytes, r: int, s: int, key: Point) -> bool:
    """The verdict of libsecp256k1, which refuses high s."""
    context = GLOBAL_CONTEXT.ctx
    parsed = ffi.new("secp256k1_ecdsa_signature *")
    compact = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    if not lib.secp256k1_ecdsa_signature_parse_compact(context, parsed, compact):
        return False
    public = ffi.new("secp256k1_pubkey *")
    if not lib.secp256k1_ec_pubkey_parse(context, public, encode(key), 65):
        raise ValueError("key is not on the curve")
    return bool(lib.secp256k1_ecdsa_verify(context, parsed, digest, public))


# ---- Comb tables ----


def table_bytes(point: Point, window: int) -> bytes:
    """A comb table as group.h lays it out, behind a header of 64 bytes."""
    top = (HALF_BITS + window - 1) // window - 1
    entries = [2 ** (window - 1)] * top + [(TOP16 >> (16 - (HALF_BITS - window * top))) + 1]
    points: list[Point] = []
    base = point
    for count in entries:
        row = [base]
        while len(row) < count:
            row.append(add(row[-1], base))
        points += row
        for _ in range(window):
            base = add(base, base)
    body = b"".join(limbs(x) + limbs(y) for x, y in points)
    return struct.pack("<QQ", window, len(points)).ljust(64, b"\0") + body


# ---- Signatures ----


@dataclass(frozen=True)
class Signer:
    """A secret (0 when unknown), its public point and the number of its comb table."""

    secret: int
    point: Point
    table: int


def hint_of(r: int, sum_point: Point) -> bytes:
    """The hint (group.h) of a valid signature."""
    x, y = sum_point
    tag = (2 if x == r else 4) + y % 2
    return bytes([tag]) + y.to_bytes(32, "big")


def record_of(digest: int, r: int, s: int, signer: Signer, crafted: bool = False) -> Record:
    """The record of a signature with r and s in range and s low."""
    valid = verify(digest.to_bytes(32, "big"), r, s, signer.point)
    u1, u2 = digest * pow(s, -1, N) % N, r * pow(s, -1, N) % N
    total = combination(u1, u2, signer.point) if valid else None
    if signer.secret != 0 and (u1 + u2 * signer.secret) % N == 0:  # infinity, by accident too
        expected = UNDECIDED
    else:
        expected = (VALID if valid else INVALID) | (MAY_BE_UNDECIDED if crafted else 0)
    hint = hint_of(r, total) if valid and total is not None else HINT_NONE
    # Trees for any key have nothing but u1 to take a second half from: where it is small, they leave it undecided.
    small = min(u1, N - u1) < 2**100
    answers = tuple(UNDECIDED if small and verifier == ("any", "trees") else expected for verifier in VERIFIERS)
    return Record(u1, u2, r, signer.point, signer.table, answers, hint)


def low(s: int) -> int:
    """s or n - s, whichever is low."""
    return min(s, N - s)


def signed(chance: random.Random, signer: Signer) -> tuple[int, int, int]:
    """A digest of a random class and its signature (digest, r, s)."""
    digest = (
        chance.choice([0, 1, N, N - 1, 2**256 - 1]) if chance.random() < 0.02 else chance.getrandbits(256)
    )
    signature = ffi.new("secp256k1_ecdsa_signature *")
    secret = signer.secret.to_bytes(32, "big")
    context = GLOBAL_CONTEXT.ctx
    lib.secp256k1_ecdsa_sign(context, signature, digest.to_bytes(32, "big"), secret, ffi.NULL, ffi.NULL)
    compact = ffi.new("unsigned char [64]")
    lib.secp256k1_ecdsa_signature_serialize_compact(context, compact, signature)
    raw = bytes(ffi.buffer(compact))
    return digest, int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")


def damaged(chance: random.Random, signer: Signer, signers: list[Signer]) -> Record:
    """A signature with one thing wrong: a bit of r, s or the digest, the key, its parity, or a special scalar."""
    digest, r, s = signed(chance, signer)
    flip = 1 << chance.randrange(256)
    kind = chance.randrange(7)
    if kind == 0:
        digest ^= flip
    elif kind == 1:
        r = (r ^ flip) % N or 1
    elif kind == 2:
        s = low((s ^ flip) % N or 1)
    elif kind == 3:
        signer = chance.choice(signers)
    elif kind == 4:
        signer = next(other for other in signers if other.secret == N - signer.secret)
    elif kind == 5:
        r = chance.choice([1, 2, N - 1, N // 2, chance.randrange(1, P - N), P - N - 1, P - N])
    else:
        s = chance.choice([1, 2, N // 2, LAMBDA % (N // 2)])
    return record_of(digest, r, s, signer)


def crafted(chance: random.Random, signers: list[Signer]) -> Record:
    """Scalars that an adversary picks, which signing digests instead of messages allows: partial sums meet."""
    signer = chance.choice(signers)
    special = [
        1,
        2,
        3,
        31,
        32,
        33,
        N - 1,
        N - 2,
        LAMBDA,
        N - LAMBDA,
        (LAMBDA + 1) % N,
        1 << 128,
        1 << 64,
        2**255 % N,
    ]
    u2 = chance.choice([*special, chance.randrange(1, N)])
    cancel = N - u2 * signer.secret % N
    u1 = (
        chance.choice(
            [0, cancel, -cancel, cancel + 1, cancel - 1, cancel + LAMBDA, *special, chance.randrange(N)]
        )
        % N
    )
    total = combination(u1, u2, signer.point)
    r = total[0] % N if total is not None else chance.randrange(1, N)
    s = r * pow(u2, -1, N) % N
    digest = u1 * s % N
    if s > N // 2:  # the negated signature has the negated sum, whose x is the same
        s = N - s
    if chance.random() < 0.2:
        digest = (digest + 1) % N
    return record_of(digest, r, s, signer, crafted=True)


def wrapped(chance: random.Random) -> Iterator[tuple[Point, int, int, int]]:
    """Signatures whose R has x = r + n, for keys made to fit: (key, digest, r, s)."""
    while True:
        point = lift(N + chance.randrange(1, P - N))
        if point is None:
            continue
        r, s, digest = point[0] - N, chance.randrange(1, N // 2), chance.getrandbits(256)
        # s R = z G + r Q
        rest = combination(N - digest % N, s, point)
        assert rest is not None
        key = multiple(pow(r, -1, N), rest)
        assert key is not None
        yield key, digest, r, s


# ---- Sums that meet ----


def meeting_record(chance: random.Random, summed: Sum, table: int, verifier: tuple[str, str] | None) -> Record | None:
    """The record of a sum that ``verifier``, if one is named, must leave undecided; ``None`` where s would be high."""
    key = multiple(summed.secret, GENERATOR)
    assert key is not None
    total = multiple(summed.total, GENERATOR)
    r = total[0] % N if total is not None else chance.randrange(1, N)
    s = r * pow(summed.u2, -1, N) % N
    if s > N // 2:
        return None
    signer = Signer(summed.secret, key, table)
    record = record_of(summed.u1 * s % N, r, s, signer, crafted=verifier is not None)
    answers = [UNDECIDED if v == verifier else answer for v, answer in zip(VERIFIERS, record.expected, strict=True)]
    return replace(record, expected=tuple(answers))


def no_key_record(chance: random.Random, signer: Signer) -> Record:
    """A sum without its key: u2 = 0, which no r can give, so that no caller asks for it.

    It alone has the digits of u2 add up to infinity, in a verifier for any key: test_odd_digits.py says why.
    """
    u1, r = chance.randrange(1, N), chance.randrange(1, N)
    answers = tuple(UNDECIDED if path == "any" else INVALID for path, _ in VERIFIERS)
    return Record(u1, 0, r, signer.point, signer.table, answers, HINT_NONE)


def meeting_records(chance: random.Random, first_table: int) -> tuple[list[Record], list[bytes]]:
    """For every step of every verifier a sum that meets there and one that does not, each with a table for its key."""
    records: list[Record] = []
    tables: list[bytes] = []
    meetings = [(v, step, sign) for v, steps in STEPS.items() for step in steps for sign in signs_of(step)]
    for verifier, step, sign in meetings:
        for meets in (True, False):
            record = None
            while record is None:
                summed = step(chance, sign) if meets else apart(step(chance, sign))
                record = meeting_record(chance, summed, first_table + len(tables), verifier if meets else None)
            records.append(record)
            tables.append(table_bytes(record.key, min(WINDOWS)))
    return records, tables


# ---- The file ----


def make_signers(chance: random.Random, count: int) -> list[Signer]:
    """Signers with their negatives: +-G, +-2 G, +-lambda G, +-G / 2 and random ones."""
    secrets = [1, 2, 3, LAMBDA, (N + 1) // 2] + [chance.randrange(1, N) for _ in range(count)]
    everyone = [secret for pair in secrets for secret in (pair, N - pair)]
    points = [multiple(secret, GENERATOR) for secret in everyone]
    return [
        Signer(d, q, 1 + i) for i, (d, q) in enumerate(zip(everyone, points, strict=True)) if q is not None
    ]


def make_file(count: int, seed: int = 1, signer_count: int = 8) -> bytes:
    """A file of about ``count`` records: half sound, a third damaged, the rest crafted."""
    chance = random.Random(seed)
    signers = make_signers(chance, signer_count)
    tables = [table_bytes(GENERATOR, GENERATOR_WINDOW)]
    tables += [table_bytes(signer.point, WINDOWS[i % len(WINDOWS)]) for i, signer in enumerate(signers)]
    records: list[Record] = []
    for (key, digest, r, s), _ in zip(wrapped(chance), range(6), strict=False):
        signer = Signer(0, key, len(tables))
        tables.append(table_bytes(key, 5))
        records += [record_of(digest, r, s, signer), record_of(digest ^ 1, r, s, signer)]
    met, more_tables = meeting_records(chance, len(tables))
    tables += more_tables
    records += [*met, *(no_key_record(chance, signer) for signer in signers)]
    while len(records) < count:
        signer = chance.choice(signers)
        fate = chance.random()
        if fate < 0.5:
            records.append(record_of(*signed(chance, signer), signer))
        elif fate < 0.85:
            records.append(damaged(chance, signer, signers))
        else:
            records.append(crafted(chance, signers))
    chance.shuffle(records)
    header = struct.pack("<QQQ", MAGIC, len(tables), len(records)).ljust(64, b"\0")
    return header + b"".join(tables) + b"".join(record.to_bytes() for record in records)


if __name__ == "__main__":
    content = make_file(int(sys.argv[2]), *(int(number) for number in sys.argv[3:4]))
    Path(sys.argv[1]).write_bytes(content)
