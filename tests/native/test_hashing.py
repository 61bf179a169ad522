"""SHA-256 of batches, on every backend that this CPU has, against NIST's vectors and hashlib."""

import os
import re
import subprocess
import sys
from array import array
from collections.abc import Iterator
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest
from conftest import PROJECT_ROOT
from hypothesis import given
from hypothesis import strategies as st

from fastledger._native import hashing as native_hashing
from fastledger._native.hashing import join_rows
from fastledger.crypto.hashing import hashing_backend, sha256_many
from fastledger.crypto.merkle import leaf_hashes

# FIPS 180-4 example messages (NIST, "SHA-256 examples"), their digests as published there.
PUBLISHED = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": (
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
    b"a" * 1_000_000: "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
}


@pytest.fixture(scope="module", params=native_hashing.backends(), autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs each test of this file once for every usable backend."""
    native_hashing.force_backend(request.param)
    yield request.param
    native_hashing.force_backend(None)


def packed(messages: list[bytes]) -> "tuple[bytes, array[int]]":
    """Messages as one buffer and its offsets."""
    return b"".join(messages), array("Q", accumulate(map(len, messages), initial=0))


def digests(messages: list[bytes]) -> bytes:
    return b"".join(sha256(message).digest() for message in messages)


def cavp_records(path: Path) -> list[dict[str, str]]:
    """The ``name = value`` records of a NIST response file, each ended by its MD."""
    records: list[dict[str, str]] = [{}]
    for line in path.read_text().splitlines():
        name, equals, value = line.partition(" = ")
        if equals and not line.startswith(("#", "[")):
            records[-1][name] = value
            if name == "MD":
                records.append({})
    return records[:-1]


def test_forced_backend_is_the_one_reported(backend: str) -> None:
    report = hashing_backend()
    assert report["sha256"] == backend
    assert report["usable"][-1] == "portable"
    assert set(report["usable"]) <= {"avx512", "shani", "avx2", "armv8", "portable"}
    assert report["sha256_lanes"] == {"avx512": 16, "avx2": 8}.get(backend, 2)
    assert report["sha256_streams"] == {"avx2": "portable"}.get(backend, report["sha256_streams"])
    assert report["sha256_streams"] in report["usable"]


def test_published_examples() -> None:
    # SPEC-HASH-1
    assert sha256_many(*packed(list(PUBLISHED))).hex() == "".join(PUBLISHED.values())


@pytest.mark.data
@pytest.mark.parametrize("name", ["SHA256ShortMsg.rsp", "SHA256LongMsg.rsp"])
def test_nist_messages(shared_data: Path, name: str) -> None:
    records = cavp_records(shared_data / "nist-cavp" / name)
    assert len(records) >= 64
    messages = [bytes.fromhex(record["Msg"])[: int(record["Len"]) // 8] for record in records]
    assert sha256_many(*packed(messages)).hex() == "".join(record["MD"] for record in records)


@pytest.mark.data
def test_nist_monte_carlo(shared_data: Path) -> None:
    """SHAVS section 6.4: a hundred checkpoints of a thousand chained hashes of three digests each."""
    records = cavp_records(shared_data / "nist-cavp" / "SHA256Monte.rsp")
    seed = bytes.fromhex(records[0]["Seed"])
    assert len(records) == 100
    offsets = array("Q", (0, 96))
    for record in records:
        window = [seed, seed, seed]
        for _ in range(1000):
            window = [window[1], window[2], sha256_many(b"".join(window), offsets)]
        seed = window[2]
        assert seed.hex() == record["MD"]


def test_every_length_around_block_edges() -> None:
    content = Random(1).randbytes(261 * 261)
    messages = [content[size : 2 * size] for size in range(261)]
    for order in (messages, messages[::-1], messages[::2] + messages[1::2]):
        assert sha256_many(*packed(order)) == digests(order)


def test_long_and_short_messages_share_a_batch() -> None:
    """The two streams run dry at different times, in every position."""
    long, short = Random(2).randbytes(100_000), b"short"
    for pattern in ("l", "ls", "sl", "lss", "sls", "ssl", "slsls", "lssssl", "ll"):
        messages = [long if letter == "l" else short for letter in pattern]
        assert sha256_many(*packed(messages)) == digests(messages)


@pytest.mark.parametrize("shift", range(9))
def test_misaligned_buffers(shift: int) -> None:
    content = Random(3).randbytes(4096 + shift)
    buffer = memoryview(content)[shift:]
    offsets = list(range(0, 4097, 64))
    assert sha256_many(buffer, offsets) == digests([bytes(buffer[i : i + 64]) for i in range(0, 4096, 64)])
    assert leaf_hashes(buffer, [shift, 4096]) == sha256(b"\x00" + buffer[shift:]).digest()


def test_leaf_hashes_prefix_every_length() -> None:
    messages = [Random(size).randbytes(size) for size in range(261)]
    assert leaf_hashes(*packed(messages)) == digests([b"\x00" + message for message in messages])


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_any_batch_equals_hashlib(messages: list[bytes]) -> None:
    assert sha256_many(*packed(messages)) == digests(messages)


def test_forms_of_input() -> None:
    messages = [b"one", b"", b"three" * 20]
    buffer, offsets = packed(messages)
    expected = digests(messages)
    misaligned = memoryview(b"\x00" + offsets.tobytes())[1:].cast("Q")
    for data in (buffer, bytearray(buffer), memoryview(buffer), array("B", buffer)):
        for form in (
            offsets,
            list(offsets),
            tuple(offsets),
            iter(list(offsets)),
            memoryview(offsets),
            misaligned,
        ):
            assert sha256_many(data, form) == expected
    assert sha256_many(buffer, [3, 3]) == sha256(b"").digest()
    assert sha256_many(buffer, [5]) == b""


@pytest.mark.parametrize(
    ("buffer", "offsets", "problem"),
    [
        ("text", [0], "buffer: expected a contiguous bytes-like object, got str"),
        (7, [0], "got int"),
        (memoryview(b"abcd")[::2], [0], "got non-contiguous memoryview"),
        (b"abc", [], "n \\+ 1 entries, got none"),
        (b"abc", array("Q"), "n \\+ 1 entries, got none"),
        (b"abc", [0, 4], "within 3 bytes, got 4 at 1"),
        (b"abc", [0, 2, 1], "got 1 at 2"),
        (b"abc", [0, 2**64 - 1, 3], "got 18446744073709551615 at 1"),
        (b"abc", [4], "got 4 at 0"),
        (b"abc", [0, -1], "integers from 0 to 2\\*\\*64 - 1, got list"),
        (b"abc", [0, 2**64], "got list"),
        (b"abc", [0, 1.5], "got list"),
        (b"abc", 3, "got int"),
        (b"abc", "03", "got str"),
        (b"abc", b"\x00\x03", "uint64 buffer, got 1 dimensions of format 'B'"),
        (b"abc", array("q", (0, 3)), "format 'q'"),
        (b"abc", array("I", (0, 3)), "format 'I'"),
        (b"abc", array("d", (0, 3)), "format 'd'"),
        (b"abc", memoryview(array("Q", (0, 0, 3)))[::2], "got a non-contiguous one"),
        (b"abc", memoryview(bytes(16)).cast("Q", (1, 2)), "got 2 dimensions"),
    ],
)
def test_wrong_shapes_are_named(buffer: object, offsets: object, problem: str) -> None:
    for hash_many in (sha256_many, leaf_hashes):
        with pytest.raises(ValueError, match=problem):
            hash_many(buffer, offsets)  # type: ignore[arg-type]


def test_unknown_backend_is_refused_and_changes_nothing(backend: str) -> None:
    # SPEC-HASH-2
    with pytest.raises(ValueError, match=r"'mmx' is unknown or not usable on this CPU: choose from \['"):
        native_hashing.force_backend("mmx")
    assert native_hashing.backend() == backend


def import_with(forced: str) -> subprocess.CompletedProcess[str]:
    code = "from fastledger._native import hashing; print(hashing.backend())"
    environment = {**os.environ, "FASTLEDGER_NATIVE": forced}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=PROJECT_ROOT,
        check=False,
    )


def test_environment_forces_a_backend(backend: str) -> None:
    assert import_with(backend).stdout.split() == [backend]


def test_environment_with_an_unknown_backend_stops_the_import() -> None:
    result = import_with("mmx")
    assert result.returncode == 1
    assert "ImportError: FASTLEDGER_NATIVE: native backend 'mmx' is unknown" in result.stderr


def test_known_answer_of_the_smoke_test() -> None:
    """native/dispatch.c trusts a kernel only after this transcript; derived here with hashlib alone."""
    # SPEC-HASH-2
    given_input = bytes(i * 167 + 13 & 0xFF for i in range(192))
    entries = [given_input[32 * i : 32 * i + 32] for i in range(3)]
    pairs = [given_input[64 * i : 64 * i + 64] for i in range(3)]
    transcript = digests([b"\x00" + entry for entry in entries])
    transcript += digests([b"\x01" + pair for pair in pairs])
    transcript += digests([sha256(pair).digest() for pair in pairs])
    transcript += digests([given_input[:119], given_input[1:120]])
    transcript += (2083236893).to_bytes(4, "big")
    source = (PROJECT_ROOT / "native" / "dispatch.c").read_text()
    declared = re.search(r"KNOWN_ANSWER\[32\] = \{([^}]*)\}", source)
    assert declared is not None
    assert bytes(int(byte, 16) for byte in re.findall(r"0x..", declared[1])) == sha256(transcript).digest()


def test_rows_are_joined_side_by_side() -> None:
    assert join_rows(b"aabbcc", 2, b"123", 1) == b"aa1bb2cc3"
    assert join_rows(b"", 32, b"", 2) == b""
    for left, left_width, right, right_width in (
        (b"aab", 2, b"12", 1),
        (b"aa", 2, b"12", 1),
        (b"aa", 0, b"1", 1),
    ):
        with pytest.raises(ValueError, match=r"expected n x|a row has"):
            join_rows(left, left_width, right, right_width)
