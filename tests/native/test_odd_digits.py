"""Why sums over the digits of u2 meet nothing, but for one u2: the premises of a proof, and what the kernels do.

Any key's u2 Q is a sum over digits of both halves of u2 = k1 + k2 lambda, from the top: in verify8_ifma.c over odd
digits of 5 bits in every place, in strauss_impl.h over digits of which most are zero and the others odd. The sum before
an addition is (a, b), which stands for a Q + b lambda Q. If d Q is added, the two share their x where (a - d, b) or
(a + d, b) stands for zero; if d lambda Q is, where (a, b - d) or (a, b + d) does. A vector (x, y) stands for zero where
it lies in the lattice of all with x + y lambda = 0 (mod n).

It is not (0, 0): what d is added to has been doubled, or is 0 yet, hence is even, and d is odd. So it is another
vector of the lattice, and those are long (`test_the_lattice_has_no_short_vector`). They are longer than any half that
strauss_impl.h has: there, nothing meets, and u2 = 0 alone, which no signature has, leaves the sum empty. They are
longer than a thirty-second of the halves below 2^129 of verify8_ifma.c too: there, only the last digits can meet.

Those are d of the first half, then e of the second. Where d meets something, (a, b) is (d, 0) or (-d, 0) modulo the
lattice, so that u2 = 2 d + e lambda or u2 = e lambda; where e does, it is (0, e) or (0, -e), so that u2 = 2 e lambda or
u2 = 0. These are few, and all are tried here, in a model and on the CPU.
"""

import random
from collections.abc import Iterator

import pytest
from collisions import LAMBDA, ORDER, Sum, scalar
from ecdsa_cases import Case, columns, of_sum

from fastledger._native.ecdsa import ecdsa_backend, ecdsa_kernels, force_ecdsa, verify_batch

# verify8_ifma.c: VECTOR, and its digits.
A, B = 0x3086D221A7D46BCDE86C90E49284EB15, -0xE4437ED6010E88286F547FA90ABFE4C3
C = 0x114CA50F7A8E2F3F657C1108D9D44CFD8
BASIS = ((A, B), (C, A))
WINDOW, ODD_DIGITS = 5, 26
ODD = range(-31, 32, 2)
HALF_BOUND = 0xA2A9 << 112  # group.h: FL_GLV_TOP16, above any half of the split
SHORTEST = -B  # the larger coordinate of a vector of the lattice, at least


def split(u2: int) -> list[int]:
    """scalar.c: (k, 0) less the nearest of the lattice, its coordinates rounded one by one."""
    c1, c2 = (2 * A * u2 + ORDER) // (2 * ORDER), (-2 * B * u2 + ORDER) // (2 * ORDER)
    return [u2 - c1 * A - c2 * C, -c1 * B - c2 * A]


def made_odd(halves: list[int]) -> list[int]:
    """verify8_ifma.c, make_odd."""
    for i in range(2):
        if halves[i] % 2 == 0:
            sign = -1 if halves[0] >= 0 else 1
            halves = [half + sign * part for half, part in zip(halves, BASIS[i], strict=True)]
    return halves


def digits_of(half: int) -> list[int]:
    """verify8_ifma.c, odd_digits: from the lowest."""
    shifted = (half + 2 ** (WINDOW * ODD_DIGITS) - 1) // 2
    return [2 * (shifted >> WINDOW * j & 31) - 31 for j in range(ODD_DIGITS)]


def meetings(u2: int) -> list[tuple[int, int, int]]:
    """(place, half, sign) of all additions of u2's digits that meet their point, or its negative (sign -1)."""
    digits = [digits_of(half) for half in made_odd(split(u2))]
    found, total = [], None
    for place in reversed(range(ODD_DIGITS)):
        total = total if total is None else total * 32 % ORDER
        for half in range(2):
            addend = digits[half][place] * (LAMBDA if half else 1) % ORDER
            if total is not None and total in (addend, ORDER - addend):
                found.append((place, half, 1 if total == addend else -1))
            total = addend if total is None else (total + addend) % ORDER
    assert total == u2
    return found


def candidates() -> Iterator[int]:
    """Every u2 under which the last digit of a half can meet something."""
    yield from (scalar(2 * d, e) for d in ODD for e in ODD)
    yield from (scalar(0, e) for e in ODD)
    yield from (scalar(0, 2 * e) for e in ODD)


def signatures(u2s: list[int]) -> list[Case]:
    """A good signature for every u2, under keys of their own."""
    source = random.Random(21)
    cases = []
    for u2 in u2s:
        case = None
        while case is None:
            case = of_sum(source, Sum(source.randrange(1, ORDER), u2, source.randrange(1, ORDER)))
        cases.append(case)
    return cases


def test_the_lattice_has_no_short_vector() -> None:
    """Both vectors are in the lattice, span all of it (their determinant is n), and no other one is shorter.

    A vector of coordinates below SHORTEST would be x BASIS[0] + y BASIS[1] with |x|, |y| at most 2 (Cramer), and those
    are all looked at.
    """
    assert all((first + second * LAMBDA) % ORDER == 0 for first, second in BASIS)
    assert A * A - B * C == ORDER
    assert max(abs(part) for vector in BASIS for part in vector) * 2 * SHORTEST < 3 * ORDER
    for x in range(-2, 3):
        for y in range(-2, 3):
            if (x, y) != (0, 0):
                vector = [x * first + y * second for first, second in zip(*BASIS, strict=True)]
                assert max(map(abs, vector)) >= SHORTEST


def test_no_digit_but_the_last_can_meet_anything() -> None:
    """What a sum of digits can be before an addition, beside the lattice's shortest vector."""
    assert SHORTEST > HALF_BOUND + 2 * 15  # strauss_impl.h, at every digit
    assert SHORTEST > 2**129 // 32 + 2 * 31  # verify8_ifma.c, at every digit but the last
    source = random.Random(20)
    extremes = [0, 1, ORDER - 1, ORDER // 2, A % ORDER, C, *candidates()]
    for u2 in extremes + [source.randrange(ORDER) for _ in range(2_000)]:
        halves = split(u2)
        assert all(abs(half) < HALF_BOUND for half in halves)
        odd = made_odd(halves)
        assert scalar(*odd) == u2 and all(half % 2 == 1 and abs(half) < 2**129 for half in odd)
        for half in odd:
            digits = digits_of(half)
            assert all(digit in ODD for digit in digits)
            assert sum(digit << WINDOW * j for j, digit in enumerate(digits)) == half


def test_58_lambda_alone_meets_itself() -> None:
    """29 lambda Q is added to 29 lambda Q, at the very last; only u2 = 0 meets a negative."""
    found = {u2: meetings(u2) for u2 in candidates() if meetings(u2)}
    assert found == {scalar(0, 58): [(0, 1, 1)]}
    assert meetings(0) == [(0, 1, -1)]


@pytest.mark.skipif("ifma" not in ecdsa_kernels(), reason="needs a CPU with AVX-512 IFMA")
def test_all_that_could_meet_on_a_cpu_with_ifma() -> None:  # SPEC-SIG-5
    """The lanes are undecided where the model says so, and nowhere else."""
    u2s = list(candidates())
    cases = signatures(u2s)
    force_ecdsa("any", "ifma")
    before = ecdsa_backend()["by"]["undecided"]
    mask, hints = verify_batch(*columns(cases), return_hints=True)
    force_ecdsa()
    assert mask == b"\x01" * len(cases)
    undecided = {u2 for u2, tag in zip(u2s, hints[1::33], strict=True) if tag == 0}
    assert undecided == {scalar(0, 58)}
    assert ecdsa_backend()["by"]["undecided"] - before == u2s.count(scalar(0, 58))


@pytest.mark.parametrize("kernel", [kernel for kernel in ecdsa_kernels() if kernel != "ifma"])
def test_trees_meet_nothing_in_u2_on_kernels_of_this_cpu(kernel: str) -> None:  # SPEC-SIG-5
    """The same scalars leave no other kernel undecided."""
    cases = signatures(list(candidates())[::4])
    force_ecdsa("any", kernel)
    before = ecdsa_backend()["by"]["undecided"]
    assert verify_batch(*columns(cases)) == b"\x01" * len(cases)
    force_ecdsa()
    assert ecdsa_backend()["by"]["undecided"] == before
