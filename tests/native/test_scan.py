"""The native scan of transactions: what it reads, what it refuses and where, and that rows stand alone."""

import hashlib
import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import cbor2
import pytest
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from fastledger._native.scan import ScanBatch, check_cbor, find_at_least, scan_many, split
from fastledger.crypto.signing import SigningKey, verify_batch
from fastledger.errors import Code, TransactionError
from fastledger.limits import BATCH_TRANSACTIONS_MAX, CBOR_DEPTH_MAX, KIND_BYTES_MAX, TRANSACTION_BYTES_MAX

CHAIN_ID = bytes.fromhex("0102030405060708")
SIGNER = b"\x02" + bytes(range(1, 33))
SIGNATURE = bytes(range(64, 128))
BODY: dict[str, Any] = {"folder": b"\x11" * 16, "record": b"\x22" * 16, "size": 70_000}
PAYLOAD_HEAD_AT = 45


def payload_items(**changes: Any) -> list[Any]:
    items = {
        "chain_id": CHAIN_ID,
        "kind": "record.put",
        "issued_ms": 1_700_000_000_000,
        "expires_ms": 1_700_000_600_000,
        "nonce": 2**63 + 5,
        "body": BODY,
    }
    return list((items | changes).values())


def cose(payload: Any, *, signer: bytes = SIGNER, unprotected: object = None, alg: int = -47) -> bytes:
    """A COSE_Sign1 by cbor2; ``payload`` is whatever shall stand in its place."""
    protected = cbor2.dumps({1: alg, 4: signer})
    return cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected or {}, payload, SIGNATURE]))


def transaction(**changes: Any) -> bytes:
    return cose(cbor2.dumps(payload_items(**changes), canonical=True))


def raw(payload_hex: str) -> bytes:
    return cose(bytes.fromhex(payload_hex))


def signed_digest(payload: bytes, signer: bytes = SIGNER) -> bytes:
    """The transaction id, the slow path: RFC 9052 section 4.4 by cbor2 and hashlib. SPEC-TX-5"""
    protected = cbor2.dumps({1: -47, 4: signer})
    return hashlib.sha256(cbor2.dumps(["Signature1", protected, b"", payload])).digest()


def scan(transactions: Sequence[bytes]) -> ScanBatch:
    ends = array("Q", [0])
    for each in transactions:
        ends.append(ends[-1] + len(each))
    return scan_many(b"".join(transactions), ends)


def verdict(tx: bytes) -> tuple[int, int]:
    batch = scan([tx])
    return batch.status(0), batch.error_offset(0)


def test_reads_every_field() -> None:  # SPEC-TX-1, SPEC-TX-4
    payload = cbor2.dumps(payload_items(), canonical=True)
    batch = scan([cose(payload)])
    assert len(batch) == batch.count == 1
    assert batch.all_ok
    assert batch.statuses.tolist() == [Code.OK]
    assert (batch.status(0), batch.error_offset(0)) == (Code.OK, 0)
    assert batch.chain_id(0) == CHAIN_ID
    assert batch.kind(0) == "record.put"
    assert batch.issued_ms(0) == 1_700_000_000_000
    assert batch.expires_ms(0) == 1_700_000_600_000
    assert batch.nonce(0) == 2**63 + 5
    assert batch.payload(0) == payload
    assert cbor2.loads(batch.body(0)) == BODY
    assert batch.signer(0) == batch.signers == SIGNER
    assert batch.signature(0) == batch.signatures == SIGNATURE
    assert batch.txid(0) == batch.txids == signed_digest(payload)
    assert batch.transaction(0) == cose(payload)


@pytest.mark.parametrize("filler", [0, 1, 100, 200, 220, 65_000, 65_100])
def test_every_size_of_payload_head(filler: int) -> None:
    tx = transaction(body={"fill": bytes(filler)})
    batch = scan([tx])
    assert batch.all_ok
    assert batch.txids == signed_digest(batch.payload(0))


def test_numbers_at_the_edges_of_their_encodings() -> None:
    numbers = [0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63, 2**64 - 1]
    batch = scan([transaction(issued_ms=n, expires_ms=n + 0, nonce=2**64 - 1 - n) for n in numbers])
    assert batch.all_ok
    assert [batch.issued_ms(i) for i in range(len(numbers))] == numbers
    assert [batch.expires_ms(i) for i in range(len(numbers))] == numbers
    assert [batch.nonce(i) for i in range(len(numbers))] == [2**64 - 1 - n for n in numbers]


def test_many_ids_equal_hashlib_across_groups_of_hashing() -> None:
    """More messages than one group takes, large and small, so that groups end by count and by room."""
    sizes = [(i * 7919) % 400 if i % 97 else 60_000 for i in range(1_000)]
    batch = scan([transaction(body={"fill": bytes(size)}, nonce=i) for i, size in enumerate(sizes)])
    assert batch.all_ok
    expected = [signed_digest(batch.payload(i)) for i in range(len(sizes))]
    assert batch.txids == b"".join(expected)


def test_the_largest_transaction_and_one_byte_more() -> None:  # SPEC-TX-2
    spare = TRANSACTION_BYTES_MAX - len(transaction(body={"fill": bytes(60_000)}))
    largest = transaction(body={"fill": bytes(60_000 + spare)})
    assert len(largest) == TRANSACTION_BYTES_MAX
    assert verdict(largest) == (Code.OK, 0)
    beyond = transaction(body={"fill": bytes(60_000 + spare + 1)})
    assert verdict(beyond) == (Code.OVERSIZED, TRANSACTION_BYTES_MAX)
    huge = bytes(300_000)
    batch = scan([huge, largest, huge, largest, largest, huge])
    assert batch.statuses.tolist() == [101, 0, 101, 0, 0, 101]
    assert batch.txid(1) == batch.txid(4) == signed_digest(batch.payload(3))


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (b"", (Code.MALFORMED, 0)),
        (b"\x84" + transaction()[2:], (Code.MALFORMED, 0)),  # no tag
        (b"\xd2\x83" + transaction()[2:], (Code.MALFORMED, 1)),
        (cose(b"", alg=-7), (Code.BAD_HEADER, 3)),  # the protected header is a byte shorter
        (cose(b"", alg=-48), (Code.BAD_HEADER, 7)),
        (cose(b"", signer=SIGNER[1:]), (Code.BAD_HEADER, 3)),
        (cose(b"", signer=SIGNER + b"\x00"), (Code.BAD_HEADER, 3)),
        (cose(cbor2.dumps(payload_items()), unprotected={4: b"x"}), (Code.BAD_HEADER, 44)),
        (cose(None), (Code.MALFORMED, PAYLOAD_HEAD_AT)),  # detached
        (cose("text"), (Code.MALFORMED, PAYLOAD_HEAD_AT)),
        (cose(b""), (Code.MALFORMED, 46)),
        (transaction() + b"\x00", (Code.MALFORMED, len(transaction()))),
        (transaction() * 2, (Code.MALFORMED, len(transaction()))),
    ],
)
def test_outlines_that_are_refused(tx: bytes, expected: tuple[int, int]) -> None:  # SPEC-TX-1, SPEC-TX-2
    assert verdict(tx) == expected


def test_a_payload_head_that_is_not_shortest() -> None:  # SPEC-TX-1
    tx = transaction(body={"fill": bytes(200)})
    assert tx[PAYLOAD_HEAD_AT] == 0x59
    longer = tx[:PAYLOAD_HEAD_AT] + b"\x5a\x00\x00" + tx[PAYLOAD_HEAD_AT + 1 :]
    assert verdict(longer) == (Code.NON_CANONICAL, PAYLOAD_HEAD_AT)
    indefinite = tx[:PAYLOAD_HEAD_AT] + b"\x5f" + tx[PAYLOAD_HEAD_AT:-66] + b"\xff" + tx[-66:]
    assert verdict(indefinite) == (Code.NON_CANONICAL, PAYLOAD_HEAD_AT)


KIND_AT = 47 + 1 + 9  # behind the payload's head of two bytes, the array's and the chain id


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"chain_id": CHAIN_ID[:7]}, (Code.MALFORMED, 48)),
        ({"chain_id": CHAIN_ID + b"\x09"}, (Code.MALFORMED, 48)),
        ({"chain_id": "01234567"}, (Code.MALFORMED, 48)),
        ({"kind": ""}, (Code.MALFORMED, KIND_AT)),
        ({"kind": "k" * KIND_BYTES_MAX}, (Code.OK, 0)),
        ({"kind": "k" * (KIND_BYTES_MAX + 1)}, (Code.MALFORMED, KIND_AT)),
        ({"kind": b"record.put"}, (Code.MALFORMED, KIND_AT)),
        ({"kind": "Record.put"}, (Code.MALFORMED, KIND_AT)),
        ({"kind": "record put"}, (Code.MALFORMED, KIND_AT)),
        ({"kind": "record/put"}, (Code.MALFORMED, KIND_AT)),
        ({"kind": "record:put"}, (Code.MALFORMED, KIND_AT)),
        ({"kind": "r\u00e9cord"}, (Code.MALFORMED, KIND_AT)),
        ({"kind": "az09._-"}, (Code.OK, 0)),
        ({"kind": 7}, (Code.MALFORMED, KIND_AT)),
        ({"kind": "k", "issued_ms": -1}, (Code.MALFORMED, KIND_AT + 2)),
        ({"kind": "k", "issued_ms": "1"}, (Code.MALFORMED, KIND_AT + 2)),
        ({"kind": "k", "issued_ms": 1, "expires_ms": None}, (Code.MALFORMED, KIND_AT + 3)),
        ({"kind": "k", "issued_ms": 1, "expires_ms": 2, "nonce": b""}, (Code.MALFORMED, KIND_AT + 4)),
        (
            {"kind": "k", "issued_ms": 1, "expires_ms": 2, "nonce": 3, "body": [0] * 60},
            (Code.MALFORMED, KIND_AT + 5),
        ),
        ({"kind": "k", "issued_ms": 1, "expires_ms": 2, "nonce": 3, "body": {}}, (Code.OK, 0)),
        ({"kind": "k", "issued_ms": 1.5}, (Code.NON_CANONICAL, KIND_AT + 2)),  # encoding before shape
    ],
)
def test_shapes_of_the_payload(changes: dict[str, Any], expected: tuple[int, int]) -> None:  # SPEC-TX-4
    changes = {"body": {"fill": bytes(50)}} | changes
    assert verdict(transaction(**changes)) == expected


@pytest.mark.parametrize(
    ("payload_hex", "expected"),
    [
        ("8548" + CHAIN_ID.hex() + "616b010203", (Code.MALFORMED, 46)),  # five items
        ("8748" + CHAIN_ID.hex() + "616b010203a000", (Code.MALFORMED, 46)),  # seven
        ("a0", (Code.MALFORMED, 46)),
        ("8648" + CHAIN_ID.hex() + "616b010203a0", (Code.OK, 0)),
        ("8648" + CHAIN_ID.hex() + "616b010203a0a0", (Code.MALFORMED, 62)),  # something behind it
        ("8648" + CHAIN_ID.hex() + "616b01020318a0", (Code.MALFORMED, 61)),
        ("8648" + CHAIN_ID.hex() + "616b18010203a0", (Code.NON_CANONICAL, 58)),
        ("8648" + CHAIN_ID.hex() + "616b010203a201000000", (Code.NON_CANONICAL, 64)),
        ("9f48" + CHAIN_ID.hex() + "616b010203a0ff", (Code.NON_CANONICAL, 46)),
    ],
)
def test_encodings_of_the_payload(payload_hex: str, expected: tuple[int, int]) -> None:  # SPEC-TX-3
    assert verdict(raw(payload_hex)) == expected


def test_body_depth_counts_from_the_payload() -> None:  # SPEC-CBOR-5
    def nested(levels: int) -> dict[str, Any]:
        return {"d": nested(levels - 1)} if levels > 1 else {}

    assert verdict(transaction(body=nested(CBOR_DEPTH_MAX - 1)))[0] == Code.OK
    assert verdict(transaction(body=nested(CBOR_DEPTH_MAX)))[0] == Code.NON_CANONICAL


def test_truncation_at_every_length_is_refused() -> None:  # SPEC-TX-1
    tx = transaction()
    batch = scan([tx[:length] for length in range(len(tx))])
    assert Code.OK not in batch.statuses.tolist()
    assert all(batch.error_offset(i) <= i for i in range(len(tx)))


def test_every_changed_byte_is_refused_or_changes_what_is_signed_or_signs() -> None:
    """A changed byte ends in a refusal, in another id, or (inside the signature) in another signature."""
    tx = transaction()
    mutants = [
        tx[:at] + bytes([tx[at] ^ flip]) + tx[at + 1 :] for at in range(len(tx)) for flip in (1, 0x20, 0x80)
    ]
    original, batch = scan([tx]), scan(mutants)
    accepted = [i for i in range(len(mutants)) if batch.status(i) == Code.OK]
    assert len(set(map(batch.txid, accepted)) | {original.txid(0)}) == len(accepted) + 1 - 3 * 64
    for i in accepted:
        in_signature = i // 3 >= len(tx) - 64
        assert (batch.txid(i) == original.txid(0)) == in_signature
        assert (batch.signature(i) == SIGNATURE) != in_signature
        assert batch.txid(i) == signed_digest(batch.payload(i), batch.signer(i))


def test_a_scanned_batch_verifies_as_it_is() -> None:
    """Columns go from the scan to the verifier without a Python object per transaction; bad rows get 0."""
    key = SigningKey.generate()
    unsigned = [transaction_of(key, nonce=i) for i in range(50)]
    signatures = key.sign_many(scan(unsigned).txids)
    whole = [tx[:-64] + signatures[64 * i : 64 * i + 64] for i, tx in enumerate(unsigned)]
    whole[3] = whole[3][:-1]
    whole[4] = whole[4][:-1] + bytes([whole[4][-1] ^ 1])
    batch = scan(whole)
    mask = verify_batch(batch.txids, batch.signatures, batch.signers)
    assert [i for i, good in enumerate(mask) if not good] == [3, 4]


def transaction_of(key: SigningKey, **changes: Any) -> bytes:
    return cose(cbor2.dumps(payload_items(**changes), canonical=True), signer=key.public_key)


def test_bad_rows_leave_the_others_as_they_are() -> None:  # SPEC-TX-7
    good = [transaction(nonce=i) for i in range(300)]
    bad = [b"", b"\xd2", transaction()[:-1], transaction() + b"\x00", bytes(90_000), cose(b"\xff")]
    mixed = [bad[i // 2 % len(bad)] if i % 2 else good[i // 2] for i in range(600)]
    alone, among = scan(good), scan(mixed)
    assert not among.all_ok
    for i in range(300):
        assert among.txid(2 * i) == alone.txid(i)
        assert among.nonce(2 * i) == i
        assert among.status(2 * i + 1) != Code.OK
        for column, width in ((among.txids, 32), (among.signers, 33), (among.signatures, 64)):
            assert column[width * (2 * i + 1) : width * (2 * i + 2)] == bytes(width)


def test_fields_of_a_refused_transaction_raise_its_code() -> None:  # SPEC-TX-6
    batch = scan([transaction(), cose(b"", alg=-48)])
    assert batch.transaction(1) == cose(b"", alg=-48)
    for field in (
        "kind",
        "body",
        "payload",
        "chain_id",
        "issued_ms",
        "expires_ms",
        "nonce",
        "txid",
        "signer",
    ):
        getattr(batch, field)(0)
        with pytest.raises(TransactionError) as caught:
            getattr(batch, field)(1)
        assert caught.value.code is Code.BAD_HEADER
        assert caught.value.index == 1
    for index in (-1, 2):
        with pytest.raises(IndexError):
            batch.status(index)
        with pytest.raises(IndexError):
            batch.kind(index)


def test_matches_chain() -> None:
    other = bytes(8)
    batch = scan([transaction(), transaction(chain_id=other), b"", transaction()])
    assert batch.matches_chain(CHAIN_ID) == b"\x01\x00\x00\x01"
    assert batch.matches_chain(other) == b"\x00\x01\x00\x00"  # a refused row is no match for zero bytes
    with pytest.raises(ValueError):
        batch.matches_chain(bytes(7))


def test_windows_are_the_extremes_of_those_in_form() -> None:
    windows = [(1000, 5000), (2000, 2001), (7000, 6000), (0, 2**64 - 1)]
    rows = [transaction(issued_ms=issued, expires_ms=expires) for issued, expires in windows]
    assert scan([rows[0], b"", rows[1]]).windows() == (2000, 2001, 1, 4000)
    assert scan(rows[:3]).windows() == (7000, 2001, 0, 4000)  # an expiry before the issue is no validity
    assert scan(rows).windows() == (7000, 2001, 0, 2**64 - 1)
    assert scan([b"", b"\xd2"]).windows() is scan([]).windows() is None


def test_gather_takes_rows_in_the_order_asked_for() -> None:
    rows = [transaction(), b"no transaction", transaction(body={"size": 2**40}), b""]
    batch = scan(rows)
    for indices in ([], [0], [2, 0], [3, 1, 3], list(range(4))):
        data, lengths = batch.gather(indices)
        assert data == b"".join(rows[i] for i in indices)
        assert lengths == b"".join(len(rows[i]).to_bytes(4, "little") for i in indices)
    for bad in ([4], [-1], [0, 2**70], ["0"]):
        with pytest.raises((IndexError, OverflowError, TypeError)):
            batch.gather(bad)  # type: ignore[arg-type]


def test_find_at_least_looks_at_one_byte_of_each() -> None:
    rows = [b"\x7f12", b"", b"\x80", b"\x8012", b"\x00\xff12", b"\x0012"]
    data, offsets = b"".join(rows), array("Q", accumulate(map(len, rows), initial=0))
    assert find_at_least(data, offsets, 3, 0x7F) == [0, 3, 4]
    assert find_at_least(data, offsets, 3, 0x80) == [3, 4]
    assert find_at_least(data, offsets, 1, 0) == [0, 2, 3, 4, 5]
    assert find_at_least(b"", array("Q", [0]), 3, 0) == []
    for bad in (array("Q"), array("Q", [0, 99]), array("Q", [3, 1]), array("I", [0, 1]), None):
        with pytest.raises((ValueError, TypeError)):
            find_at_least(data, bad, 3, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        find_at_least(data, offsets, 0, 0)


def test_no_transactions() -> None:
    batch = scan([])
    assert (len(batch), batch.txids, batch.signers, batch.signatures) == (0, b"", b"", b"")
    assert batch.all_ok
    assert batch.matches_chain(CHAIN_ID) == b""


@pytest.mark.parametrize(
    "offsets",
    [[], [0, 5, 4], [0, 11], [2**64 - 1, 0], [11], [0, 2**63, 2**63]],
)
def test_offsets_are_checked(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        scan_many(bytes(10), array("Q", offsets))


def test_no_python_object_is_made_per_transaction() -> None:
    few, many = [transaction()] * 10, [transaction()] * 2_000

    def blocks_added(batch: Sequence[bytes]) -> int:
        data, offsets = b"".join(batch), array("Q", accumulate(map(len, batch), initial=0))
        before = sys.getallocatedblocks()
        held = scan_many(data, offsets)
        added = sys.getallocatedblocks() - before
        assert held.all_ok
        return added

    blocks_added(few)
    assert abs(blocks_added(many) - blocks_added(few)) < 20


def test_other_types_are_refused() -> None:
    for offsets in (
        None,
        [0, 1],
        array("I", [0, 1]),
        array("d", [0, 1]),
        memoryview(array("Q", range(4)))[::2],
    ):
        with pytest.raises(ValueError, match="offsets"):
            scan_many(bytes(10), offsets)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data"):
        scan_many("text", array("Q", [0, 1]))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ScanBatch()


def test_a_window_of_a_larger_misaligned_buffer() -> None:
    tx = transaction()
    for shift in range(9):
        data = memoryview(bytes(shift) + tx + tx + b"tail")[shift:]
        batch = scan_many(data, array("Q", [0, len(tx), 2 * len(tx)]))
        assert batch.all_ok
        assert batch.txid(1) == scan([tx]).txid(0)
        assert scan_many(data, array("Q", [len(tx), 2 * len(tx)])).kind(0) == "record.put"


def test_the_batch_keeps_what_it_has_checked() -> None:
    tx = transaction()
    data = bytearray(tx)
    batch = scan_many(data, array("Q", [0, len(data)]))
    data[:] = bytes(len(data))
    data.clear()
    assert batch.transaction(0) == tx
    assert batch.kind(0) == "record.put"
    kept = scan_many(memoryview(bytes(tx)), array("Q", [0, len(tx)]))
    assert kept.body(0) == batch.body(0)


def test_offsets_are_copied() -> None:
    tx = transaction()
    offsets = array("Q", [0, len(tx)])
    batch = scan_many(tx, offsets)
    offsets[1] = 2**40
    assert batch.transaction(0) == tx


def test_split_finds_what_scan_reads() -> None:  # SPEC-TX-8
    transactions = [transaction(nonce=i, body={"fill": bytes(i)}) for i in range(200)]
    data = b"".join(transactions)
    offsets, status, at = split(data)
    assert (status, at) == (Code.OK, len(data))
    batch = scan_many(data, offsets)
    assert batch.all_ok
    assert [batch.transaction(i) for i in range(len(batch))] == transactions


def test_split_leaves_payloads_to_the_scan() -> None:
    """What stands inside a payload is one transaction's matter and does not stop the cut."""
    data = transaction() + cose(b"\xff\xff") + cose(b"") + cose(bytes(70_000)) + transaction()
    offsets, status, _ = split(data)
    assert status == Code.OK
    assert scan_many(data, offsets).statuses.tolist() == [0, 100, 100, 101, 0]


def test_split_stops_at_what_is_no_transaction() -> None:
    tx = transaction()
    for garbage, status, offset in [
        (b"\x00", Code.MALFORMED, 0),
        (tx[:-1], Code.MALFORMED, len(tx) - 66),
        (tx[:30], Code.MALFORMED, 30),
        (cose(b"", alg=-48), Code.BAD_HEADER, 7),
        (tx[:45] + b"\x58\x01" + tx[47:], Code.NON_CANONICAL, 45),
    ]:
        offsets, found, at = split(tx + tx + garbage)
        assert offsets.tolist() == [0, len(tx), 2 * len(tx)]
        assert (found, at) == (status, 2 * len(tx) + offset)


def test_split_is_bounded() -> None:
    tx = cose(b"")
    offsets, status, at = split(tx * 5, count_max=3)
    assert (offsets.tolist(), status, at) == ([0, 112, 224, 336], Code.OVERSIZED, 336)
    assert split(tx * 3, count_max=3)[1:] == (Code.OK, 336)
    assert split(b"", count_max=0)[0].tolist() == [0]
    assert split(tx, count_max=0)[1:] == (Code.OVERSIZED, 0)
    assert split(tx * (BATCH_TRANSACTIONS_MAX + 1))[1:] == (Code.OVERSIZED, 112 * BATCH_TRANSACTIONS_MAX)


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_garbage_is_refused_row_by_row(rows: list[bytes]) -> None:
    batch = scan(rows)
    assert Code.OK not in batch.statuses.tolist()
    assert batch.txids == bytes(32 * len(rows))
    offsets, status, at = split(b"".join(rows))
    assert offsets.tolist() == [0]
    assert at == 0 or status != Code.OK


def accepts(tx: bytes) -> bool:
    """The oracle: a transaction is what its own decoding encodes to, by cbor2, with the right types in it."""
    try:
        tag = cbor2.loads(tx)
        protected, _, payload, signature = tag.value
        items = cbor2.loads(payload)
        signer = cbor2.loads(protected)[4]
        chain_id, kind, *numbers, body = items
    except Exception:
        return False
    if cbor2.dumps(cbor2.CBORTag(18, [cbor2.dumps({1: -47, 4: signer}), {}, payload, signature])) != tx:
        return False
    if {type(each) for each in (chain_id, signer, payload, signature)} != {bytes}:
        return False
    if type(kind) is not str or type(body) is not dict:
        return False
    if len(numbers) != 3 or any(type(number) is not int or number < 0 for number in numbers):
        return False
    named = 0 < len(kind) <= KIND_BYTES_MAX and set(kind) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    sized = (len(chain_id), len(signer), len(signature)) == (8, 33, 64)
    return named and sized and check_cbor(payload)[0] == Code.OK


@settings(max_examples=examples(300))
@given(st.data())
def test_damaged_transactions_get_the_oracles_verdict(draw: st.DataObject) -> None:
    tx = bytearray(transaction(body={"a": draw.draw(st.integers(0, 2**64 - 1)), "b": [True, None, "x"]}))
    for _ in range(draw.draw(st.integers(1, 2))):
        at = draw.draw(st.integers(0, len(tx) - 1))
        old_len = draw.draw(st.integers(0, 2))
        tx[at : at + old_len] = draw.draw(st.binary(max_size=2))
    batch = scan([bytes(tx)])
    assert (batch.status(0) == Code.OK) == accepts(bytes(tx))
    if batch.all_ok:
        assert batch.txid(0) == signed_digest(batch.payload(0), batch.signer(0))
