"""Sums u1 G + u2 Q in which one addition meets a point twice, or a point and its negative, step by step.

No formula for adding points covers those two, so that a kernel that meets them leaves the signature undecided. Which
sums do so depends on the order in which a kernel adds: each of the four algorithms has steps of its own here.

A scalar is written (first, second) for first + second lambda. Halves as small as those below are what the kernels
split it into, and each term of theirs, a small number times a power of two, is one digit of their tables.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
LAMBDA = 0x5363AD4CC05C30E0A5261C028812645A122E22EA20816678DF02967C1B23BD72

MIDDLE, HIGH = 2**52, 2**120  # digits of other positions than the lowest, alone in them for windows of 4, 8 and 13 bits


class Sum(NamedTuple):
    """u1 G + u2 Q, where Q is ``secret`` times G."""

    u1: int
    u2: int
    secret: int

    @property
    def total(self) -> int:
        """The multiple of G that it is; 0 for the point at infinity."""
        return (self.u1 + self.u2 * self.secret) % ORDER


# Takes a source of chance, and 1 for a point met twice or -1 for a point that meets its negative.
Step = Callable[[random.Random, int], Sum]


def scalar(first: int, second: int) -> int:
    return (first + second * LAMBDA) % ORDER


def ratio(above: int, below: int) -> int:
    return above * pow(below, -1, ORDER) % ORDER


def digit(source: random.Random) -> int:
    return source.randrange(1, 8)


# ---- Any key: the kernel computes u2 Q, whose point can be chosen ----


def key_product(source: random.Random, u1: int, product: int) -> Sum:
    """The sum of which u2 Q is ``product`` times G."""
    u2 = source.randrange(1, ORDER)
    return Sum(u1, u2, ratio(product, u2))


def generator_second_half(source: random.Random, sign: int) -> Sum:
    """verify8_ifma.c, second half of u1: u2 Q meets its digit."""
    c, e = digit(source), digit(source)
    return key_product(source, scalar(c, e), scalar(0, sign * e))


def generator_first_half(source: random.Random, sign: int) -> Sum:
    """verify8_ifma.c, first half of u1: what there is by then meets its first digit."""
    c, e = digit(source), digit(source)
    return key_product(source, scalar(c, e), scalar(sign * c, -e))


def generator_later_digit(source: random.Random, sign: int) -> Sum:
    """verify8_ifma.c, the same with a digit after the first."""
    c, high, e = digit(source), digit(source) * HIGH, digit(source)
    return key_product(source, scalar(c + high, e), scalar(sign * high - c, -e))


def last_odd_digit(source: random.Random, sign: int) -> Sum:
    """verify8_ifma.c, the sum over odd digits of u2: at its last step, under any key, and for this u2 alone.

    Why there is no other, nor one that meets a negative, is in ``tests/native/test_odd_digits.py``.
    """
    if sign < 0:
        raise ValueError("no digits of u2 meet the negative of their sum")
    return Sum(source.randrange(1, ORDER), scalar(0, 58), source.randrange(1, ORDER))


def product_and_digit(source: random.Random, sign: int) -> Sum:
    """strauss_impl.h, first level of the tree: u2 Q is added to the only digit of u1's first half."""
    c, e = digit(source), digit(source)
    return key_product(source, scalar(c, e), sign * c)


def product_and_digits(source: random.Random, sign: int) -> Sum:
    """strauss_impl.h, second level: the sum of two digits meets that of a third and u2 Q."""
    c, middle, high, e = digit(source), digit(source) * MIDDLE, digit(source) * HIGH, digit(source)
    return key_product(source, scalar(c + middle + high, e), sign * (c + middle) - high)


def product_and_second_half(source: random.Random, sign: int) -> Sum:
    """strauss_impl.h, last addition: that of the halves, the second times lambda."""
    c, e = digit(source), digit(source)
    return key_product(source, scalar(c, e), scalar(-c, sign * e))


def product_alone(source: random.Random, sign: int) -> Sum:
    """strauss_impl.h: the second half of u1, or u1 as a whole, has no digit, so that there is nothing to add."""
    return key_product(source, digit(source) if sign > 0 else 0, source.randrange(1, ORDER))


# ---- Known key: the kernel adds digits of both scalars, and the key is what makes them meet ----


def key_second_half(source: random.Random, sign: int) -> Sum:
    """comb8_ifma.c, second halves: the generator's digit meets the key's. comb_impl.h: a pair of them."""
    c, d, e, f = (digit(source) for _ in range(4))
    return Sum(scalar(c, e), scalar(d, f), ratio(sign * e, f))


def generator_after_rotation(source: random.Random, sign: int) -> Sum:
    """comb8_ifma.c, first halves: lambda times the second halves meets the generator's digit."""
    c, d, e, f = (digit(source) for _ in range(4))
    return Sum(scalar(c, e), scalar(d, f), ratio(ratio(sign * c, LAMBDA) - e, f))


def key_after_rotation(source: random.Random, sign: int) -> Sum:
    """comb8_ifma.c, last step; the same sum of three meets the key's digit."""
    c, d, e, f = (digit(source) for _ in range(4))
    return Sum(scalar(c, e), scalar(d, f), ratio(scalar(c, e), sign * d - f * LAMBDA))


def pair_of_digits(source: random.Random, sign: int) -> Sum:
    """comb_impl.h, first level of the tree of the first halves."""
    c, d, e, f = (digit(source) for _ in range(4))
    return Sum(scalar(c, e), scalar(d, f), ratio(sign * c, d))


def pairs_of_digits(source: random.Random, sign: int) -> Sum:
    """comb_impl.h, second level: the sum of the generator's two digits meets that of the key's."""
    c, middle, d, high = digit(source), digit(source) * MIDDLE, digit(source), digit(source) * HIGH
    e, f = digit(source), digit(source)
    return Sum(scalar(c + middle, e), scalar(d + high, f), ratio(sign * (c + middle), d + high))


def both_halves(source: random.Random, sign: int) -> Sum:
    """comb_impl.h, last addition: that of the halves, the second times lambda."""
    c, d, e, f = (digit(source) for _ in range(4))
    return Sum(scalar(c, e), scalar(d, f), ratio(scalar(-c, sign * e), d - sign * f * LAMBDA))


def one_half_alone(source: random.Random, sign: int) -> Sum:
    """comb_impl.h: neither scalar has a digit in one half, so that there is nothing to add."""
    c, d, secret = digit(source), digit(source), source.randrange(1, ORDER)
    return Sum(scalar(c, 0), scalar(d, 0), secret) if sign > 0 else Sum(scalar(0, c), scalar(0, d), secret)


# ---- All of them ----

# By path and the way of a kernel: the lanes of AVX-512 IFMA, the trees of the kernels for BMI2 and ADX and for any CPU.
STEPS: dict[tuple[str, str], tuple[Step, ...]] = {
    ("any", "lanes"): (generator_second_half, generator_first_half, generator_later_digit, last_odd_digit),
    ("any", "trees"): (product_and_digit, product_and_digits, product_and_second_half, product_alone),
    ("known", "lanes"): (key_second_half, generator_after_rotation, key_after_rotation),
    ("known", "trees"): (pair_of_digits, key_second_half, pairs_of_digits, both_halves, one_half_alone),
}


def way_of(kernel: str) -> str:
    """How a kernel adds: the second part of a key of ``STEPS``."""
    return "lanes" if kernel == "ifma" else "trees"


def signs_of(step: Step) -> tuple[int, ...]:
    """What a step can meet: see ``Step``."""
    return (1,) if step is last_odd_digit else (1, -1)


def apart(meeting: Sum) -> Sum:
    """A sum of the same digits but for one in each half, under another key: none of its additions is exceptional."""
    return Sum(
        (meeting.u1 + scalar(1, 1)) % ORDER, (meeting.u2 + scalar(1, 1)) % ORDER, (meeting.secret + HIGH) % ORDER
    )
