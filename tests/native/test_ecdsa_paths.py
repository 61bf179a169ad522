"""Every path and kernel of batch verification against libsecp256k1, hints, tables and their bounds."""

import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from budget import examples
from coincurve import PublicKey
from collisions import STEPS, Step, signs_of, way_of
from ecdsa_cases import (
    FIELD_PRIME,
    Case,
    CaseSource,
    columns,
    for_nonce_point,
    hint_of,
    of_step,
    points_beyond_the_order,
    sign,
    to32,
    x_of,
)
from fuzz_ecdsa import Tally, compare_paths
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ecdsa import key_of, wycheproof

from fastledger._native.ecdsa import (
    HINTS_FULL,
    HINTS_PARITY,
    TABLE_MEMORY_MAX,
    ecdsa_backend,
    ecdsa_kernels,
    force_ecdsa,
    parity_hints,
    resize_key_cache,
    set_table_memory,
    verify_batch,
)
from fastledger.crypto.signing import ORDER

TABLE_BYTES = 133_312
FAST = [(path, kernel) for kernel in ecdsa_kernels() for path in ("auto", "known", "any")]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    resize_key_cache()
    yield
    force_ecdsa()
    resize_key_cache()
    set_table_memory()


def good_cases(count: int, key_count: int, first_digest: int = 0) -> list[Case]:
    keys = [key_of(10_000 + 7 * i * i) for i in range(key_count)]
    cases = []
    for i in range(count):
        digest = to32(first_digest + i + 1)
        cases.append(Case(digest, keys[i % key_count].sign(digest), keys[i % key_count].public_key))
    return cases


def libsecp(cases: list[Case]) -> bytes:
    force_ecdsa("libsecp")
    return verify_batch(*columns(cases))


# ---- The same verdicts ----


@pytest.mark.data
@pytest.mark.parametrize(("path", "kernel"), FAST)
@pytest.mark.parametrize("name", ["ecdsa_secp256k1_sha256_test", "ecdsa_secp256k1_sha256_bitcoin_test"])
def test_wycheproof_on_every_path(shared_data: Path, name: str, path: str, kernel: str) -> None:  # SPEC-SIG-5
    file = shared_data / "wycheproof" / f"{name}.json"
    items = [item for _, item in wycheproof(file) if item is not None]
    cases = [Case(item.digest, item.signature, item.key) for item in items]
    expected = libsecp(cases)
    force_ecdsa(path, kernel)
    mask, hints = verify_batch(*columns(cases), return_hints=True)
    assert mask == expected and 90 < sum(expected) < len(cases)
    force_ecdsa("randomised", kernel)
    assert verify_batch(*columns(cases), hints=hints) == expected
    assert verify_batch(*columns(cases), hints=parity_hints(hints)) == expected


@pytest.mark.parametrize("kernel", ecdsa_kernels())
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_seeded_fuzz(seed: int, kernel: str) -> None:  # SPEC-SIG-5
    """Good signatures and damage to r, s, key, digest, parity, high s, special scalars, r + n, duplicates."""
    source, tally = CaseSource(seed), Tally()
    for count in (1, 2, 63, 64, 65, examples(300)):
        assert compare_paths(source, source.batch(count), kernel, tally) == []
    assert tally.bad * 3 > tally.signatures > tally.bad


@settings(max_examples=examples(15), deadline=None)
@given(st.integers(0, 2**64), st.integers(1, 40), st.sampled_from(ecdsa_kernels()))
def test_same_verdicts_as_libsecp(seed: int, count: int, kernel: str) -> None:  # SPEC-SIG-5
    source = CaseSource(seed, key_count=3)
    assert compare_paths(source, source.batch(count), kernel, Tally()) == []


# ---- Additions that no formula covers ----


def undecided_of(path: str, kernel: str, cases: list[Case]) -> int:
    """How many of the cases a path leaves to libsecp256k1, whose verdicts it has to give on all of them."""
    expected = libsecp(cases)
    resize_key_cache()  # no key has earned a table yet
    force_ecdsa(path, kernel)
    before: int = ecdsa_backend()["by"]["undecided"]
    assert verify_batch(*columns(cases)) == expected
    return ecdsa_backend()["by"]["undecided"] - before


# Path, kernel, step, sign: what each path of each kernel of this CPU can meet, in its own order of adding.
MEETINGS = [
    pytest.param(path, kernel, step, sign, id=f"{path}-{kernel}-{step.__name__}-{'twice' if sign > 0 else 'negative'}")
    for kernel in ecdsa_kernels()
    for path in ("any", "known")
    for step in STEPS[path, way_of(kernel)]
    for sign in signs_of(step)
]


@pytest.mark.parametrize(("path", "kernel", "step", "sign"), MEETINGS)
def test_sums_that_meet_on_kernels_of_this_cpu(path: str, kernel: str, step: Step, sign: int) -> None:
    """Every signature whose sum meets in a step is left undecided, none that is like it (SPEC-SIG-5)."""
    meeting, others = of_step(random.Random(11), step, sign, 20)
    assert undecided_of(path, kernel, meeting) == len(meeting)
    assert undecided_of(path, kernel, others) == 0
    assert undecided_of(path, kernel, [case for pair in zip(meeting, others, strict=True) for case in pair]) == 20
    assert libsecp(others) == b"\x01" * 20
    if path == "any":
        assert undecided_of("auto", kernel, meeting) == len(meeting)  # its own choice for keys never seen


@pytest.mark.parametrize(("path", "kernel", "step", "sign"), MEETINGS)
def test_undecided_lanes_spoil_no_hint_on_kernels_of_this_cpu(
    path: str, kernel: str, step: Step, sign: int
) -> None:  # SPEC-SIG-6
    """Hints come from one inversion for many signatures: the z of an undecided one is 0, and is kept out of it."""
    meeting, others = of_step(random.Random(13), step, sign, 20)
    cases = [case for pair in zip(meeting, others, strict=True) for case in pair]
    force_ecdsa(path, kernel)
    mask, hints = verify_batch(*columns(cases), return_hints=True)
    rows = [hints[at : at + 33] for at in range(1, len(hints), 33)]
    assert mask == libsecp(cases)
    assert rows[::2] == [bytes(33)] * 20
    assert rows[1::2] == [hint_of(case) for case in others]


@pytest.mark.parametrize("kernel", ecdsa_kernels())
def test_meetings_in_a_randomised_batch_on_kernels_of_this_cpu(kernel: str) -> None:  # SPEC-SIG-5
    """Random factors keep apart what would meet; where such a batch fails, each signature goes its own way.

    One signature of a batch is made to meet, all others are of random keys and nonces: points that are small multiples
    of each other meet in a randomised sum every now and then.
    """
    source = random.Random(15)
    ordinary = [
        sign(source.randrange(1, ORDER), source.randbytes(32), source.randrange(1, ORDER)) for _ in range(19)
    ]
    for step in STEPS["any", way_of(kernel)]:
        meeting, _ = of_step(random.Random(14), step, 1, 1)
        cases = ordinary + meeting
        rows = [hint_of(case) for case in cases]
        resize_key_cache()
        force_ecdsa("randomised", kernel)
        before = ecdsa_backend()
        assert verify_batch(*columns(cases), hints=bytes([HINTS_FULL]) + b"".join(rows)) == b"\x01" * 20
        closed = ecdsa_backend()
        assert closed["by"]["randomised"] == before["by"]["randomised"] + 20
        assert closed["by"]["libsecp"] == before["by"]["libsecp"]
        rows[0] = bytes([rows[0][0] ^ 1]) + to32(FIELD_PRIME - int.from_bytes(rows[0][1:], "big"))
        assert verify_batch(*columns(cases), hints=bytes([HINTS_FULL]) + b"".join(rows)) == b"\x01" * 20
        failed = ecdsa_backend()
        assert failed["batches_failed"] == closed["batches_failed"] + 1
        assert failed["by"]["undecided"] == closed["by"]["undecided"] + 1


@pytest.mark.parametrize(("path", "kernel"), FAST)
def test_doublings_and_infinity(path: str, kernel: str) -> None:  # SPEC-SIG-5
    """u1 G = u2 Q is good and u1 G = -u2 Q bad, whatever path meets them."""
    source = CaseSource(5)
    doublings = [source.doubling(b"") for _ in range(20)]
    infinities = [source.cancelling(case) for case in doublings]
    assert libsecp(doublings + infinities) == b"\x01" * 20 + bytes(20)
    assert undecided_of(path, kernel, doublings) == 0  # the last digit that is added is not all of u1 G
    assert undecided_of(path, kernel, infinities) == 20


@pytest.mark.parametrize("kernel", ecdsa_kernels())
def test_x_beyond_the_order(kernel: str) -> None:  # SPEC-SIG-2, SPEC-SIG-6
    """x(R) = r + n is good, its hint says so, and only r, not r + n, is taken."""
    points = points_beyond_the_order(4)
    assert all(x_of(point) >= ORDER for point in points)
    cases = [for_nonce_point(point, ORDER // (3 + i), ORDER // (9 + i)) for i, point in enumerate(points)]
    wide = [
        Case(c.digest, to32(x_of(p)) + c.signature[32:], c.key) for c, p in zip(cases, points, strict=True)
    ]
    force_ecdsa("any", kernel)
    mask, hints = verify_batch(*columns(cases + wide), return_hints=True)
    assert mask == b"\x01" * 4 + bytes(4)
    tags = hints[1::33]
    assert all(tag in (4, 5) for tag in tags[:4]) and tags[4:] == bytes(4)
    force_ecdsa("randomised", kernel)
    before = ecdsa_backend()["by"]["randomised"]
    for column in (hints, parity_hints(hints)):
        assert verify_batch(*columns(cases + wide), hints=column) == mask
    assert ecdsa_backend()["by"]["randomised"] == before + 8


# ---- Hints ----


@pytest.mark.parametrize("path", ["known", "any"])
def test_hints_are_the_nonce_points(path: str) -> None:  # SPEC-SIG-6
    nonces = [3 * i + 2 for i in range(50)]
    cases = [sign(99 + i, to32(i + 1), nonce) for i, nonce in enumerate(nonces)]
    cases.append(cases[0]._replace(digest=bytes(32)))
    force_ecdsa(path)
    mask, hints = verify_batch(*columns(cases), return_hints=True)
    assert mask == b"\x01" * 50 + b"\x00" and hints[0] == HINTS_FULL and hints[-33:] == bytes(33)
    for i, nonce in enumerate(nonces):
        tag, y = hints[1 + 33 * i], hints[2 + 33 * i : 34 + 33 * i]
        points = [PublicKey.from_secret(to32(k)).format(compressed=False) for k in (nonce, ORDER - nonce)]
        assert b"\x04" + cases[i].signature[:32] + y in points  # a low s may have negated R
        assert tag == 2 + y[31] % 2
    short = parity_hints(hints)
    assert short[0] == HINTS_PARITY and short[1:] == hints[1::33]


def test_hints_let_the_batch_be_verified_as_one() -> None:  # SPEC-SIG-5, SPEC-SIG-6
    cases = good_cases(200, key_count=9)
    mask, hints = verify_batch(*columns(cases), return_hints=True)
    for column in (hints, parity_hints(hints)):
        before = ecdsa_backend()["by"]["randomised"]
        assert verify_batch(*columns(cases), hints=column, return_hints=True) == (mask, hints)
        assert ecdsa_backend()["by"]["randomised"] == before + 200


@pytest.mark.parametrize("width", [1, 33])
def test_a_wrong_hint_changes_no_verdict(width: int) -> None:  # SPEC-SIG-6
    cases = good_cases(80, key_count=5)
    cases[7] = cases[7]._replace(digest=bytes(32))
    expected = bytes(i != 7 for i in range(80))
    _, full = verify_batch(*columns(cases), return_hints=True)
    hints = full if width == 33 else parity_hints(full)
    force_ecdsa("randomised")
    wrong = [bytes([0]), bytes([1]), bytes([6]), bytes([255]), bytes([hints[1] ^ 1]), bytes([hints[1] + 2])]
    for tag in wrong:
        assert verify_batch(*columns(cases), hints=hints[:1] + tag + hints[2:]) == expected
    assert verify_batch(*columns(cases), hints=hints[:1] + hints[1:][::-1]) == expected
    if width == 33:
        y = int.from_bytes(hints[2:34], "big")
        for other in (FIELD_PRIME - y, y ^ 1, 0, FIELD_PRIME, 2**256 - 1):
            assert verify_batch(*columns(cases), hints=hints[:2] + to32(other) + hints[34:]) == expected


def test_two_wrongs_do_not_cancel() -> None:  # SPEC-SIG-5
    """Errors of s that cancel in an unweighted sum: each term has its own random factor."""
    cases = good_cases(100, key_count=1)
    _, hints = verify_batch(*columns(cases), return_hints=True)
    crossed = list(cases)
    crossed[0] = cases[0]._replace(digest=cases[1].digest)
    crossed[1] = cases[1]._replace(digest=cases[0].digest)
    swapped = hints[:1] + hints[34:67] + hints[1:34] + hints[67:]
    force_ecdsa("randomised")
    assert verify_batch(*columns(crossed), hints=hints) == bytes(2) + b"\x01" * 98
    assert verify_batch(*columns(crossed), hints=swapped) == bytes(2) + b"\x01" * 98


def test_duplicates_in_a_randomised_batch() -> None:  # SPEC-SIG-5
    cases = good_cases(1, key_count=1) * 150
    _, hints = verify_batch(*columns(cases), return_hints=True)
    failed = ecdsa_backend()["batches_failed"]
    assert verify_batch(*columns(cases), hints=hints) == b"\x01" * 150
    assert ecdsa_backend()["batches_failed"] > failed  # R meets itself in the sum, which then says nothing


@pytest.mark.parametrize("kernel", ecdsa_kernels())
def test_the_negative_of_a_nonce_point_does_not_close_a_sum(kernel: str) -> None:  # SPEC-SIG-6
    """Where all else comes from tables, u1 G + u2 Q is compared with R: -R has the same x, and must not pass."""
    cases = good_cases(1, key_count=1)
    force_ecdsa("known", kernel)
    _, hints = verify_batch(*columns(cases), return_hints=True)
    y = int.from_bytes(hints[2:], "big")
    force_ecdsa("randomised", kernel)
    failed = ecdsa_backend()["batches_failed"]
    assert verify_batch(*columns(cases), hints=hints) == b"\x01"
    assert ecdsa_backend()["batches_failed"] == failed
    negative = hints[:1] + bytes([hints[1] ^ 1]) + to32(FIELD_PRIME - y)
    assert verify_batch(*columns(cases), hints=negative) == b"\x01"
    assert ecdsa_backend()["batches_failed"] == failed + 1


@pytest.mark.parametrize(
    "hints", [b"", b"\x01", b"\x02" + bytes(2), b"\x00" + bytes(2), b"\x03" + bytes(2), b"\x01" + bytes(66)]
)
def test_shape_of_hints_is_checked(hints: bytes) -> None:  # SPEC-SIG-6
    data = columns(good_cases(2, 1))
    with pytest.raises(ValueError, match=r"hints: expected 1 \+ n bytes"):
        verify_batch(*data, hints=hints)
    with pytest.raises(ValueError, match="hints"):
        verify_batch(*data, hints=memoryview(bytes(6))[::2])
    with pytest.raises(ValueError, match="hints"):
        parity_hints(b"\x01\x02")


# ---- Tables ----


def test_busy_keys_get_tables_by_themselves() -> None:  # SPEC-SIG-5
    """A key that fills a batch gets its table at once, one that comes back again and again after a while."""
    verify_batch(*columns(good_cases(40, key_count=1)))
    assert ecdsa_backend()["tables"] == 1
    for _ in range(40):
        verify_batch(*columns(good_cases(3, key_count=3)))
    assert ecdsa_backend()["tables"] == 3
    resize_key_cache()
    spoiled = [case._replace(digest=bytes(32)) for case in good_cases(60, key_count=3)]
    assert verify_batch(*columns(spoiled)) == bytes(60)
    assert ecdsa_backend()["tables"] == 0  # who owns no good signature keeps nothing


@pytest.mark.parametrize("slots", [0, 1, 3])
def test_tables_stay_under_their_limit(slots: int) -> None:  # SPEC-SIG-5
    set_table_memory(slots * TABLE_BYTES + 5)
    evicted = 0
    for start in range(4):
        cases = good_cases(80, key_count=4, first_digest=100 * start)
        keys = [key_of(50 * start + i) for i in range(4)]
        cases = [
            Case(case.digest, keys[i % 4].sign(case.digest), keys[i % 4].public_key)
            for i, case in enumerate(cases)
        ]
        assert verify_batch(*columns(cases)) == b"\x01" * 80
        backend = ecdsa_backend()
        assert backend["tables"] == slots and backend["table_memory"] <= backend["table_memory_max"]
        assert backend["tables_evicted"] >= evicted
        evicted = backend["tables_evicted"]
    assert evicted == 3 * slots
    set_table_memory(0)
    assert ecdsa_backend()["table_memory"] == 0
    with pytest.raises(ValueError, match="size"):
        set_table_memory(TABLE_MEMORY_MAX + 1)


def test_batches_leak_nothing() -> None:
    """Ten thousand batches: tables come and go, hints are made and used, and the process grows by nothing."""
    set_table_memory(3 * TABLE_BYTES)
    resize_key_cache(16)
    batches = []
    for start in range(8):
        data = columns(good_cases(16, key_count=1 + start % 3, first_digest=1_000 * start))
        batches.append((data, verify_batch(*data, return_hints=True)[1]))
    force_ecdsa("auto")

    def run(count: int) -> int:
        for i in range(count):
            data, hints = batches[i % 8]
            if i % 400 == 0:
                force_ecdsa(("auto", "known", "any", "randomised")[i // 400 % 4])
            few = tuple(part[: len(part) // 16] for part in data)
            verify_batch(*few) if i % 8 else verify_batch(*data, hints=hints, return_hints=True)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    settled = run(2_000)
    assert run(8_000) - settled < 4_096  # KiB


# ---- Choosing ----


CHILD = """
import json
from fastledger._native.ecdsa import ecdsa_backend
backend = ecdsa_backend()
print(json.dumps([backend["kernel"], backend["policy"]]))
"""


def child_backend(value: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FASTLEDGER_ECDSA": value}
    return subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kernel", ecdsa_kernels())
def test_the_environment_chooses(kernel: str) -> None:  # SPEC-SIG-5
    assert json.loads(child_backend("libsecp").stdout) == [None, "libsecp"]
    assert json.loads(child_backend("fast").stdout) == [ecdsa_kernels()[0], "auto"]
    assert json.loads(child_backend(kernel).stdout) == [kernel, "auto"]


def test_an_unknown_kernel_is_refused() -> None:
    assert "no ECDSA kernel" in child_backend("abacus").stderr
    with pytest.raises(ValueError, match="kernel"):
        force_ecdsa(None, "abacus")
    with pytest.raises(ValueError, match="path"):
        force_ecdsa("sideways")
