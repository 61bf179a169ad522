"""Randomised sums whose factors are chosen, so that additions on the way meet (msm_impl.h, native/testing/sums_test.c).

The signatures are good: the sum is zero. Where an addition meets a point twice, or a point and its negative, the kernel
must not say so, since it has lost the sum; with other factors the same batch closes, which shows that nothing else was
wrong with it. Digits are written with windows of 4 bits for so few terms.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from collisions import HIGH, LAMBDA, MIDDLE, ORDER, ratio, scalar
from lane_vectors import GENERATOR, GENERATOR_WINDOW, Point, limbs, multiple, table_bytes

MAGIC = int.from_bytes(b"SUM1", "little")
NO_TABLE = 2**32 - 1
KEY_WINDOW = 4


@dataclass(frozen=True)
class Signature:
    """u1 G + u2 Q = R as scalars: all points are multiples of G. ``factor`` is (a, b), for a + b lambda."""

    u1: int
    u2: int
    nonce: int
    factor: tuple[int, int]

    def to_bytes(self) -> bytes:
        """192 bytes: the C test's ``sum_signature``, under the batch's one key."""
        numbers = point_bytes(of_generator(self.nonce)) + limbs(self.u1) + limbs(self.u2)
        return (numbers + struct.pack("<QQI", *self.factor, 0)).ljust(192, b"\0")


@dataclass(frozen=True)
class Batch:
    """Signatures under one key, and whether that has a table: without, it is a term of the sum like nonce points."""

    secret: int
    signatures: tuple[Signature, ...]
    has_table: bool = True

    def with_other_factors(self, chance: random.Random) -> "Batch":
        """The same with factors under which nothing meets: random ones, or such as share no digit."""
        factors = [(chance.getrandbits(64), chance.getrandbits(64))]
        if len(self.signatures) > 1:
            factors = [(1 << 4 * place, 0) for place in range(len(self.signatures))]
        signatures = [replace(s, factor=factor) for s, factor in zip(self.signatures, factors, strict=True)]
        return replace(self, signatures=tuple(signatures))

    @property
    def is_good(self) -> bool:
        return all((s.u1 + s.u2 * self.secret - s.nonce) % ORDER == 0 for s in self.signatures)

    def to_bytes(self, table: int, closes: bool) -> bytes:
        """The C test's ``sum_header``, one ``sum_key`` and the signatures."""
        header = struct.pack("<QQQ", 1, len(self.signatures), closes).ljust(64, b"\0")
        key = point_bytes(of_generator(self.secret)) + struct.pack("<I", table if self.has_table else NO_TABLE)
        return header + key.ljust(128, b"\0") + b"".join(signature.to_bytes() for signature in self.signatures)


def point_bytes(point: Point) -> bytes:
    return limbs(point[0]) + limbs(point[1])


def of_generator(number: int) -> Point:
    point = multiple(number, GENERATOR)
    assert point is not None
    return point


# ---- Nonce points that meet ----


def of_nonces(chance: random.Random, *nonces_and_factors: tuple[int, int]) -> Batch:
    """Signatures with these nonces and factors a, where b = 0, so that each R is in few buckets.

    Their key has a table: what meets is among the nonce points.
    """
    secret = chance.randrange(1, ORDER)
    signatures = []
    for nonce, factor in nonces_and_factors:
        u2 = chance.randrange(1, ORDER)
        signatures.append(Signature((nonce - u2 * secret) % ORDER, u2, nonce % ORDER, (factor, 0)))
    return Batch(secret, tuple(signatures))


def bucket_twice(chance: random.Random) -> Batch:
    """R is put into a bucket that holds it."""
    nonce = chance.randrange(1, ORDER)
    return of_nonces(chance, (nonce, 3), (nonce, 3))


def bucket_negative(chance: random.Random) -> Batch:
    """-R is put into the bucket that holds R."""
    nonce = chance.randrange(1, ORDER)
    return of_nonces(chance, (nonce, 3), (ORDER - nonce, 3))


def row(chance: random.Random) -> Batch:
    """Buckets 2 and 3, which are one row, hold the same."""
    nonce = chance.randrange(1, ORDER)
    return of_nonces(chance, (nonce, 2), (nonce, 3))


def column(chance: random.Random) -> Batch:
    """Buckets 1 and 3, which are one column, hold the same."""
    nonce = chance.randrange(1, ORDER)
    return of_nonces(chance, (nonce, 1), (nonce, 3))


def bit(chance: random.Random) -> Batch:
    """Buckets 2 and 6 are rows of their own, whose numbers have a bit in common."""
    nonce = chance.randrange(1, ORDER)
    return of_nonces(chance, (nonce, 2), (nonce, 6))


def horner_twice(chance: random.Random) -> Batch:
    """Twice the sum of the upper bit is the sum of the lower one."""
    nonce = chance.randrange(1, ORDER)
    return of_nonces(chance, (nonce, 2), (2 * nonce, 1))


def horner_negative(chance: random.Random) -> Batch:
    """Twice the sum of the upper bit is the negative of the lower one's: all of it is the point at infinity."""
    nonce = chance.randrange(1, ORDER)
    return of_nonces(chance, (nonce, 2), (-2 * nonce, 1))


# ---- Tables whose points meet ----


def of_scalars(u1: int, u2: int, secret: int, has_table: bool = True) -> Batch:
    """One signature, whose factor 1 leaves its scalars as they are."""
    return Batch(secret, (Signature(u1, u2, (u1 + u2 * secret) % ORDER, (1, 0)),), has_table)


def first_halves_alone(chance: random.Random) -> Batch:
    """The tables give no second half."""
    return of_scalars(5, 7, chance.randrange(1, ORDER))


def second_halves_alone(chance: random.Random) -> Batch:
    """The tables give no first half."""
    return of_scalars(scalar(0, 5), scalar(0, 7), chance.randrange(1, ORDER))


def no_second_half_of_the_generator(chance: random.Random) -> Batch:
    """The key has no table, and the generator's gives no second half."""
    return of_scalars(5, chance.randrange(1, ORDER), chance.randrange(1, ORDER), has_table=False)


def first_halves_twice(_: random.Random) -> Batch:
    """The generator's digit and the key's are the same point."""
    return of_scalars(scalar(3, 5), scalar(2, 7), ratio(3, 2))


def first_halves_negative(_: random.Random) -> Batch:
    """The key's digit is the negative of the generator's."""
    return of_scalars(scalar(3, 5), scalar(2, 7), ratio(-3, 2))


def second_halves_twice(_: random.Random) -> Batch:
    """Sums of two digits each are the same point."""
    secret = ratio(5 + 2 * MIDDLE, 7 + 3 * HIGH)
    return of_scalars(scalar(3, 5 + 2 * MIDDLE), scalar(2, 7 + 3 * HIGH), secret)


def halves_twice(_: random.Random) -> Batch:
    """The sum of the first halves is lambda times that of the second ones."""
    return of_scalars(scalar(3, 5), scalar(2, 7), ratio(scalar(-3, 5), 2 - 7 * LAMBDA))


def halves_negative(chance: random.Random) -> Batch:
    """It is the negative of that, so that the tables give the point at infinity, which no R is: a bad signature."""
    infinite = Signature(scalar(3, 5), scalar(2, 7), chance.randrange(1, ORDER), (1, 0))
    return Batch(ratio(scalar(-3, -5), 2 + 7 * LAMBDA), (infinite,))


# ---- The file ----

MEETINGS: tuple[Callable[[random.Random], Batch], ...] = (
    bucket_twice,
    bucket_negative,
    row,
    column,
    bit,
    horner_twice,
    horner_negative,
    first_halves_alone,
    second_halves_alone,
    no_second_half_of_the_generator,
    first_halves_twice,
    first_halves_negative,
    second_halves_twice,
    halves_twice,
    halves_negative,
)


def make_file(seed: int = 1) -> bytes:
    """Every batch as it was made, which must not close, and with other factors, which must if it is good."""
    chance = random.Random(seed)
    tables = [table_bytes(GENERATOR, GENERATOR_WINDOW)]
    sums: list[bytes] = []
    for meeting in MEETINGS:
        batch = meeting(chance)
        sums.append(batch.to_bytes(len(tables), closes=False))
        sums.append(batch.with_other_factors(chance).to_bytes(len(tables), closes=batch.is_good))
        tables.append(table_bytes(of_generator(batch.secret), KEY_WINDOW))
    header = struct.pack("<QQQ", MAGIC, len(tables), len(sums)).ljust(64, b"\0")
    return header + b"".join(tables) + b"".join(sums)
