"""The native checker of deterministic CBOR against the RFC's examples and a recursive one in plain Python."""

import struct
from collections.abc import Iterator

import cbor2
import pytest
from budget import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastledger._native.scan import check_cbor
from fastledger.errors import Code
from fastledger.limits import CBOR_DEPTH_MAX

OK, MALFORMED, NON_CANONICAL = int(Code.OK), int(Code.MALFORMED), int(Code.NON_CANONICAL)


class Refused(Exception):
    """Raised by the plain checker: a code and the offset of the first problem."""


def plain_check(data: bytes) -> tuple[int, int]:
    """The oracle: one pass by recursion over slices, written from RFC 8949 and not from the C code."""
    try:
        end = check_item(data, 0, 0)
    except Refused as refused:
        return refused.args
    return (OK, end) if end == len(data) else (MALFORMED, end)


def check_item(data: bytes, at: int, depth: int) -> int:
    major, info, argument, begin = read_head(data, at)
    left = len(data) - begin
    if major == 1 and argument >= 2**63:
        raise Refused(NON_CANONICAL, at)
    if major in (2, 3):
        content = data[begin : begin + argument]
        if len(content) < argument or (major == 3 and not is_text(content)):
            raise Refused(MALFORMED, at)
        return begin + argument
    if major in (4, 5):
        if argument * (major - 3) > left:
            raise Refused(MALFORMED, at)
        if depth == CBOR_DEPTH_MAX:
            raise Refused(NON_CANONICAL, at)
        return check_members(data, begin, argument, depth + 1, keyed=major == 5)
    if major == 6:
        raise Refused(NON_CANONICAL, at)
    if major == 7 and info not in (20, 21, 22):
        raise Refused(MALFORMED if info == 24 and argument < 32 else NON_CANONICAL, at)
    return begin


def check_members(data: bytes, at: int, count: int, depth: int, *, keyed: bool) -> int:
    last_key = None
    for _ in range(count):
        if keyed:
            end = check_item(data, at, depth)
            if last_key is not None and data[at:end] <= last_key:
                raise Refused(NON_CANONICAL, at)
            last_key, at = data[at:end], end
        at = check_item(data, at, depth)
    return at


def read_head(data: bytes, at: int) -> tuple[int, int, int, int]:
    if at == len(data):
        raise Refused(MALFORMED, at)
    major, info = divmod(data[at], 32)
    if info < 24:
        return major, info, info, at + 1
    if info >= 28:
        raise Refused(NON_CANONICAL if info == 31 and major in (2, 3, 4, 5) else MALFORMED, at)
    form = {24: ">B", 25: ">H", 26: ">I", 27: ">Q"}[info]
    try:
        (argument,) = struct.unpack_from(form, data, at + 1)
    except struct.error:
        raise Refused(MALFORMED, at) from None
    shortest = {24: 24, 25: 2**8, 26: 2**16, 27: 2**32}[info]
    if major != 7 and argument < shortest:
        raise Refused(NON_CANONICAL, at)
    return major, info, argument, at + 1 + struct.calcsize(form)


def is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8", "strict")
    except UnicodeDecodeError:
        return False
    return True


def encode(value: object) -> bytes:
    """Deterministic encoding: cbor2 for the leaves (shortest heads), keys sorted by their encodings."""
    if isinstance(value, list | tuple):
        return head(4, len(value)) + b"".join(map(encode, value))
    if isinstance(value, dict):
        pairs = sorted((encode(key), encode(member)) for key, member in value.items())
        return head(5, len(pairs)) + b"".join(key + member for key, member in pairs)
    return cbor2.dumps(value)


def head(major: int, argument: int) -> bytes:
    unsigned = bytearray(cbor2.dumps(argument))
    unsigned[0] |= major << 5
    return bytes(unsigned)


def words(text: str) -> list[str]:
    return text.split()


# RFC 8949 appendix A, table 6, in its order, with the verdict of our profile. SPEC-CBOR-1, SPEC-CBOR-2
ALLOWED_EXAMPLES = words("""
00 01 0a 17 1818 1819 1864 1903e8 1a000f4240 1b000000e8d4a51000 1bffffffffffffffff 20 29 3863 3903e7 f4 f5 f6
40 4401020304 60 6161 6449455446 62225c 62c3bc 63e6b0b4 64f0908591 80 83010203 8301820203820405
98190102030405060708090a0b0c0d0e0f101112131415161718181819 a0 a201020304 a26161016162820203 826161a161626163
a56161614161626142616361436164614461656145
""")
NOT_DETERMINISTIC_EXAMPLES = words("""
c249010000000000000000 3bffffffffffffffff
c349010000000000000000 f90000 f98000 f93c00 fb3ff199999999999a f93e00
f97bff fa47c35000 fa7f7fffff fb7e37e43c8800759c f90001 f90400 f9c400 fbc010666666666666 f97c00 f97e00 f9fc00
fa7f800000 fa7fc00000 faff800000 fb7ff0000000000000 fb7ff8000000000000 fbfff0000000000000 f7 f0 f8ff
c074323031332d30332d32315432303a30343a30305a c11a514b67b0 c1fb41d452d9e8200000 d74401020304
d818456449455446 d82076687474703a2f2f7777772e6578616d706c652e636f6d 5f42010243030405ff
7f657374726561646d696e67ff 9fff 9f018202039f0405ffff 9f01820203820405ff 83018202039f0405ff 83019f0203ff820405
9f0102030405060708090a0b0c0d0e0f101112131415161718181819ff bf61610161629f0203ffff 826161bf61626163ff
bf6346756ef563416d7421ff
""")
# RFC 8949 appendix F.1, the examples of definite length. SPEC-CBOR-3
NOT_WELL_FORMED_EXAMPLES = words("""
18 19 1a 1b 1901 1a0102 1b01020304050607 38 58 78 98 9a01ff00 b8 d8 f8 f900 fa0000 fb000000 41 61 5affffffff00
5bffffffffffffffff010203 7affffffff00 7b7fffffffffffffff010203 81 818181818181818181 8200 a1 a20102 a100
a2000000 1c 1d 1e 3c 3d 3e 5c 5d 5e 7c 7d 7e 9c 9d 9e bc bd be dc dd de fc fd fe f800 f801 f818 f81f ff 81ff
8200ff a1ff a1ff00 a100ff a20000ff 1f 3f df
""")


@pytest.mark.parametrize("example_hex", ALLOWED_EXAMPLES)
def test_rfc_examples_in_the_profile_are_accepted(example_hex: str) -> None:
    data = bytes.fromhex(example_hex)
    assert check_cbor(data) == (OK, len(data))


@pytest.mark.parametrize("example_hex", NOT_DETERMINISTIC_EXAMPLES)
def test_rfc_examples_outside_the_profile_are_non_canonical(example_hex: str) -> None:
    status, _ = check_cbor(bytes.fromhex(example_hex))
    assert status == NON_CANONICAL


@pytest.mark.parametrize("example_hex", NOT_WELL_FORMED_EXAMPLES)
def test_rfc_examples_that_are_not_well_formed_are_malformed(example_hex: str) -> None:
    status, _ = check_cbor(bytes.fromhex(example_hex))
    assert status == MALFORMED


@pytest.mark.parametrize(
    ("example_hex", "verdict"),
    [
        ("", (MALFORMED, 0)),
        ("0000", (MALFORMED, 1)),  # one item, then another
        ("1817", (NON_CANONICAL, 0)),  # 23 in two bytes
        ("3817", (NON_CANONICAL, 0)),
        ("8158170000", (NON_CANONICAL, 1)),
        ("1900ff", (NON_CANONICAL, 0)),
        ("1a0000ffff", (NON_CANONICAL, 0)),
        ("1b00000000ffffffff", (NON_CANONICAL, 0)),
        ("1b0000000100000000", (OK, 9)),
        ("3b7fffffffffffffff", (OK, 9)),  # -2**63
        ("3b8000000000000000", (NON_CANONICAL, 0)),  # -2**63 - 1
        ("a2000000", (MALFORMED, 0)),
        ("a200000000", (NON_CANONICAL, 3)),  # the same key twice
        ("a201000000", (NON_CANONICAL, 3)),  # 1 before 0
        ("a2616100410000", (NON_CANONICAL, 4)),  # text before bytes
        ("a261620062616100", (OK, 8)),  # the encoding's order: shorter first
        ("a262616100616200", (NON_CANONICAL, 5)),
        ("8382f500f500", (OK, 6)),
        ("a1818000", (OK, 4)),  # a container as a key
        ("a2a1000100810000", (NON_CANONICAL, 5)),  # a map before an array
        ("a0ff", (MALFORMED, 1)),
        ("f814", (MALFORMED, 0)),  # false in two bytes is not even well-formed
        ("62c3", (MALFORMED, 0)),
        ("61c3", (MALFORMED, 0)),
        ("8200c000", (NON_CANONICAL, 2)),
        ("9bffffffffffffffff", (MALFORMED, 0)),
        ("bb8000000000000000", (MALFORMED, 0)),  # twice the count would overflow
    ],
)
def test_named_cases(example_hex: str, verdict: tuple[int, int]) -> None:  # SPEC-CBOR-4
    data = bytes.fromhex(example_hex)
    assert check_cbor(data) == verdict
    assert plain_check(data) == verdict


def nested(levels: int) -> Iterator[bytes]:
    """The same depth by arrays, by map values and by map keys."""
    yield b"\x81" * (levels - 1) + b"\x80"
    yield b"\xa1\x00" * (levels - 1) + b"\xa0"
    yield b"\xa1" * (levels - 1) + b"\xa0" + b"\x00" * (levels - 1)


def test_depth_is_bounded() -> None:  # SPEC-CBOR-5
    for data in nested(CBOR_DEPTH_MAX):
        assert check_cbor(data) == (OK, len(data))
    for data in nested(CBOR_DEPTH_MAX + 1):
        assert check_cbor(data)[0] == NON_CANONICAL
    assert check_cbor(b"\x81" * 1_000_000 + b"\x00") == (NON_CANONICAL, CBOR_DEPTH_MAX)


def test_utf8_agrees_with_python_on_every_start() -> None:  # SPEC-CBOR-3
    """All sequences of two bytes, and of longer ones those at the edges of Unicode's table 3-7."""
    edges = (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF)
    texts = [bytes((a, b)) for a in range(256) for b in range(256)]
    texts += [bytes((a, b, c)) for a in range(0xE0, 0x100) for b in edges for c in edges]
    texts += [bytes((a, b, c, 0x80)) for a in range(0xF0, 0x100) for b in edges for c in edges]
    texts += [bytes((0xF4, b, 0x80, d)) for b in edges for d in edges]
    for text in texts:
        expected = OK if is_text(text) else MALFORMED
        assert check_cbor(head(3, len(text)) + text)[0] == expected, text.hex()


@pytest.mark.parametrize("before", range(10))
def test_utf8_is_checked_across_the_eight_byte_stride(before: int) -> None:
    for sequence, expected in (("é水𐅑".encode(), OK), (b"\xed\xa0\x80", MALFORMED), (b"\xff", MALFORMED)):
        text = b"a" * before + sequence + b"b" * (17 - before)
        assert check_cbor(head(3, len(text)) + text)[0] == expected


leaves = (
    st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=40)
    | st.text(max_size=40)
    | st.booleans()
    | st.none()
)
keys = st.integers(-300, 300) | st.text(max_size=3) | st.binary(max_size=3) | st.tuples(st.integers(0, 30))
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=20,
)


@given(values)
def test_deterministic_encodings_are_accepted(value: object) -> None:
    data = encode(value)
    assert check_cbor(data) == (OK, len(data))


@given(values, st.data())
def test_damaged_encodings_get_the_oracles_verdict(value: object, draw: st.DataObject) -> None:
    data = bytearray(encode(value))
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data)))
        action = draw.draw(st.sampled_from(("replace", "insert", "cut")))
        if action == "cut":
            del data[at:]
        else:
            data[at : at + (action == "replace")] = draw.draw(st.binary(min_size=1, max_size=1))
    assert check_cbor(data) == plain_check(bytes(data))


# Bytes that are heads more often than chance would have it, so that deep and odd structures appear.
heads = st.builds(
    lambda major, info, rest: bytes([major << 5 | info]) + rest,
    st.integers(0, 7),
    st.sampled_from((0, 1, 1, 2, 3, 20, 22, 24, 25, 31)),
    st.binary(max_size=2),
)


@settings(max_examples=examples(400))
@given(st.binary(max_size=80) | st.lists(heads, max_size=24).map(b"".join))
@example(b"")
def test_any_bytes_get_the_oracles_verdict(data: bytes) -> None:
    assert check_cbor(data) == plain_check(data)


def test_a_map_of_many_long_keys_is_read_in_one_pass() -> None:
    """Sixteen levels of maps whose keys share all but their last bytes: the worst case of comparing keys."""
    key_count = 200
    keys_of_a_map = [b"\x59\x01\x00" + bytes(254) + index.to_bytes(2, "big") for index in range(key_count)]
    body = b"".join(key + b"\x00" for key in keys_of_a_map)
    data = head(5, key_count) + body
    for _ in range(CBOR_DEPTH_MAX - 1):
        data = b"\xa1" + data + b"\x00"  # the map becomes the key of a map around it
    assert check_cbor(data) == (OK, len(data))
    swapped = data.replace(keys_of_a_map[7], keys_of_a_map[9])
    assert check_cbor(swapped)[0] == NON_CANONICAL


@pytest.mark.parametrize("source", [memoryview(bytes(8))[::2], None, "00", 0])
def test_only_contiguous_bytes_are_read(source: object) -> None:
    with pytest.raises(ValueError, match="data: expected a contiguous bytes-like object"):
        check_cbor(source)  # type: ignore[arg-type]
