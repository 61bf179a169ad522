"""Signatures for tests that compare verifiers: good ones, damaged ones, and those made to meet exceptions.

Everything comes from a seed. A verifier sees only columns, so that a case is (digest, signature, key).
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from coincurve import PrivateKey, PublicKey
from collisions import LAMBDA, Step, Sum, apart

from fastledger.crypto.signing import LOW_S_MAX, ORDER

FIELD_PRIME = 2**256 - 2**32 - 977

# Secrets whose keys are entries of a comb of the generator, or of the other table that a key meets there.
TABLE_SECRETS = (
    1,
    2,
    3,
    4,
    5,
    7,
    128,
    129,
    2**13,
    3 << 13,
    2**26 + 2**13,
    2**120,
    163 << 120,
    LAMBDA,
    5 * LAMBDA % ORDER,
)
SPECIAL_SECRETS = tuple(sign * secret % ORDER for secret in TABLE_SECRETS for sign in (1, -1))

SPECIAL_SCALARS = (
    0, 1, 2, ORDER - 1, ORDER, ORDER + 1, LOW_S_MAX, LOW_S_MAX + 1, FIELD_PRIME - 1, FIELD_PRIME, 2**128, 2**256 - 1,
)  # fmt: skip


class Case(NamedTuple):
    digest: bytes
    signature: bytes
    key: bytes


def to32(number: int) -> bytes:
    return number.to_bytes(32, "big")


def columns(cases: list[Case]) -> tuple[bytes, bytes, bytes]:
    return (
        b"".join(c.digest for c in cases),
        b"".join(c.signature for c in cases),
        b"".join(c.key for c in cases),
    )


def x_of(point: PublicKey) -> int:
    return int.from_bytes(point.format()[1:], "big")


def inverse(number: int) -> int:
    return pow(number, -1, ORDER)


def low(s: int) -> int:
    return min(s, ORDER - s)


def sign(secret: int, digest: bytes, nonce: int) -> Case:
    """A good signature with a nonce of our choice."""
    r = x_of(PublicKey.from_secret(to32(nonce))) % ORDER
    s = low(inverse(nonce) * (int.from_bytes(digest, "big") + r * secret) % ORDER)
    return Case(digest, to32(r) + to32(s), PublicKey.from_secret(to32(secret)).format())


def for_nonce_point(nonce_point: PublicKey, u1: int, u2: int) -> Case:
    """A good signature whose R is given: Q = (R - u1 G) / u2, with s and the digest to match."""
    difference = PublicKey.combine_keys([nonce_point, PublicKey.from_secret(to32(ORDER - u1))])
    key = difference.multiply(to32(inverse(u2)))
    r = x_of(nonce_point) % ORDER
    s = r * inverse(u2) % ORDER
    # The digest belongs to the s that was computed: n - s would negate both u1 and u2, and R with them.
    return Case(to32(u1 * s % ORDER), to32(r) + to32(low(s)), key.format())


def of_sum(source: random.Random, summed: Sum) -> Case | None:
    """A signature that is verified by this sum: good, but bad where the sum is the point at infinity.

    ``None`` where its s would have to be high: the low one negates both scalars. Another sum of the kind may do.
    """
    nonce = summed.total or source.randrange(1, ORDER)
    r = x_of(PublicKey.from_secret(to32(nonce))) % ORDER
    s = r * inverse(summed.u2) % ORDER
    if s != low(s):
        return None
    key = PublicKey.from_secret(to32(summed.secret)).format()
    return Case(to32(summed.u1 * s % ORDER), to32(r) + to32(s), key)


def of_step(source: random.Random, step: Step, sign: int, count: int) -> tuple[list[Case], list[Case]]:
    """Signatures whose sums meet in a step, and as many like them whose sums do not."""
    meeting: list[Case] = []
    others: list[Case] = []
    while len(meeting) < count or len(others) < count:
        summed = step(source, sign)
        for cases, case in ((meeting, of_sum(source, summed)), (others, of_sum(source, apart(summed)))):
            if case is not None and len(cases) < count:
                cases.append(case)
    return meeting, others


def hint_of(case: Case) -> bytes:
    """The hint of a good signature whose digest is not zero (group.h): R by libsecp256k1."""
    r, s = (int.from_bytes(case.signature[at : at + 32], "big") for at in (0, 32))
    u1, u2 = int.from_bytes(case.digest, "big") * inverse(s) % ORDER, r * inverse(s) % ORDER
    product = PublicKey(case.key).multiply(to32(u2))
    encoded = PublicKey.combine_keys([PublicKey.from_secret(to32(u1)), product]).format(compressed=False)
    x_is_r = encoded[1:33] == case.signature[:32]
    return bytes([(2 if x_is_r else 4) + encoded[64] % 2]) + encoded[33:]


def points_beyond_the_order(count: int) -> list[PublicKey]:
    """Points with n <= x < p: their r is x - n."""
    found = []
    for x in range(ORDER + 1, FIELD_PRIME):
        if pow(x**3 + 7, (FIELD_PRIME - 1) // 2, FIELD_PRIME) == 1:
            found.append(PublicKey(bytes([2 + len(found) % 2]) + to32(x)))
        if len(found) == count:
            break
    return found


class CaseSource:
    """Batches from a seed: about half of the cases damaged, the rest good."""

    def __init__(self, seed: int, key_count: int = 40) -> None:
        self.random = random.Random(seed)
        secrets = [self.random.randrange(1, ORDER) for _ in range(key_count)]
        self.keys = [PrivateKey(to32(secret)) for secret in secrets]
        self.special_keys = [PrivateKey(to32(secret)) for secret in SPECIAL_SECRETS]
        self.wide_points = points_beyond_the_order(6)
        self.damages: list[Callable[[Case], Case]] = [
            self.flip_bit,
            self.flip_bit,
            self.other_parity,
            self.high_s,
            self.special_scalar,
            self.special_digest,
            self.r_plus_n,
            self.cancelling,
            self.swapped,
        ]

    def batch(self, count: int) -> list[Case]:
        """Cases in random order, some of them more than once."""
        cases: list[Case] = []
        for _ in range(count):
            kind = self.random.random()
            if kind < 0.5:
                cases.append(self.good())
            elif kind < 0.55 and cases:
                cases.append(self.random.choice(cases))
            else:
                cases.append(self.random.choice(self.damages)(self.good()))
        return cases

    def good(self) -> Case:
        """An ordinary signature, or one of the rare kinds that are good too."""
        kind = self.random.random()
        digest = self.random.randbytes(32)
        if kind < 0.01:
            return self.doubling(digest)
        if kind < 0.02:
            return for_nonce_point(self.random.choice(self.wide_points), self.scalar(), self.scalar())
        if kind < 0.03:
            return sign(self.random.choice(SPECIAL_SECRETS), digest, self.random.choice(SPECIAL_SECRETS))
        if kind < 0.04:
            return for_nonce_point(
                self.random.choice(self.special_keys).public_key, self.scalar(), self.scalar()
            )
        key = self.random.choice(self.special_keys if kind < 0.06 else self.keys)
        signature = key.sign_recoverable(digest, hasher=None)[:64]
        return Case(digest, signature, key.public_key.format())

    def scalar(self) -> int:
        return self.random.randrange(1, ORDER)

    def doubling(self, digest: bytes) -> Case:
        """u1 G = u2 Q: the sum of both is a doubling. Good."""
        nonce, secret = self.scalar(), self.scalar()
        r = x_of(PublicKey.from_secret(to32(nonce))) % ORDER
        s = 2 * r * secret * inverse(nonce) % ORDER
        return Case(
            to32(r * secret % ORDER), to32(r) + to32(low(s)), PublicKey.from_secret(to32(secret)).format()
        )

    def cancelling(self, case: Case) -> Case:
        """u1 G = -u2 Q: the sum is infinity. Bad, whatever r is."""
        secret = self.scalar()
        r = int.from_bytes(case.signature[:32], "big")
        key = PublicKey.from_secret(to32(secret)).format()
        return Case(to32(-r * secret % ORDER), case.signature, key)

    def flip_bit(self, case: Case) -> Case:
        field = self.random.randrange(3)
        content = bytearray(case[field])
        content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        parts = list(case)
        parts[field] = bytes(content)
        return Case(*parts)

    def other_parity(self, case: Case) -> Case:
        return case._replace(key=bytes([case.key[0] ^ 1]) + case.key[1:])

    def high_s(self, case: Case) -> Case:
        s = int.from_bytes(case.signature[32:], "big")
        return case._replace(signature=case.signature[:32] + to32((ORDER - s) % ORDER))

    def special_scalar(self, case: Case) -> Case:
        value = to32(self.random.choice(SPECIAL_SCALARS))
        if self.random.random() < 0.5:
            return case._replace(signature=value + case.signature[32:])
        return case._replace(signature=case.signature[:32] + value)

    def special_digest(self, case: Case) -> Case:
        return case._replace(digest=to32(self.random.choice(SPECIAL_SCALARS)))

    def r_plus_n(self, case: Case) -> Case:
        good = for_nonce_point(self.random.choice(self.wide_points), self.scalar(), self.scalar())
        r = int.from_bytes(good.signature[:32], "big")
        return good._replace(signature=to32(r + ORDER) + good.signature[32:])

    def swapped(self, case: Case) -> Case:
        return case._replace(key=self.random.choice(self.keys).public_key.format())

    def spoil_hints(self, hints: bytes, width: int) -> bytes:
        """Some tags and roots of a column of hints replaced by others."""
        spoiled = bytearray(hints)
        for at in range(1, len(hints), width):
            kind = self.random.random()
            if kind < 0.02:
                spoiled[at] = self.random.choice((0, 1, 2, 3, 4, 5, 6, 255))
            elif kind < 0.03 and width > 1:
                spoiled[at + self.random.randrange(1, width)] ^= 1 << self.random.randrange(8)
            elif kind < 0.04:
                other = self.random.randrange(1, len(hints), width)
                spoiled[at : at + width] = hints[other : other + width]
        return bytes(spoiled)
