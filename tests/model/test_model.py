"""Transactions, blocks, headers and genesis documents: one encoding each, and nothing else accepted."""

import json
import struct
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import cbor2
import pytest
from budget import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import BODY, CBOR_VALUES, KEM_PUBLIC, UINT64_MAX, X25519_HEAD

from fastledger import Authority, Code, Genesis, Role, SigningKey, Transaction, verify_statement
from fastledger._native.scan import scan_many
from fastledger.crypto.merkle import leaf_hashes, merkle_root
from fastledger.crypto.signing import verify_one
from fastledger.errors import FastLedgerError, InputError, ReceiptError
from fastledger.model.block import Block, Header, HeaderBody, result_entries
from fastledger.model.body import Body, body_map, parse_body
from fastledger.model.codec import decode, encode
from fastledger.model.ids import identity_id
from fastledger.model.receipt import SealHeader, check_seal, make_seal
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.identity import IdentityRegister

BODIES = {name: kind.body for name, kind in REGISTRY.kinds.items()}

VECTORS = Path(__file__).parents[1] / "vectors" / "model.json"
KEY = SigningKey.from_bytes(bytes(range(1, 33)))
CHAIN_ID = b"chain-id"
KEM = X25519_HEAD + bytes(range(32))
QUICK = settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
DELTAS = (1, 0x20, 0x80, 0xFF)

DIGEST = st.binary(min_size=32, max_size=32)
HEADERS = st.builds(
    Header, DIGEST, DIGEST, *(st.integers(0, 2**32 - 1) for _ in range(4))
)  # time, bits, nonce, version
BODIES_OF_HEADERS = st.builds(
    HeaderBody,
    height=st.integers(0, 2**53),
    time_ms=st.integers(0, 2**42 - 1),
    tx_root=DIGEST,
    result_root=DIGEST,
    state_root=DIGEST,
    history_root=DIGEST,
    proposer=st.binary(min_size=33, max_size=33),
    seal_ref=DIGEST,
    extra_nonce=st.integers(0, UINT64_MAX),
)


def signed(body: Body, **changes: Any) -> Transaction:
    fields: dict[str, Any] = {"chain_id": CHAIN_ID, "issued_ms": 1, "expires_ms": 2, "nonce": 3}
    return Transaction.sign(KEY, body=body, **(fields | changes))


def registration(nonce: int = 0) -> Transaction:
    return signed(IdentityRegister(role=Role.PATIENT, kem=KEM), nonce=nonce)


def block_of(transactions: list[Transaction], codes: list[int], *, key: SigningKey = KEY) -> Block:
    """A whole block, its roots and seal as they must be."""
    results = struct.pack(f">{len(codes)}H", *codes)
    txids = b"".join(transaction.txid for transaction in transactions)
    entries, offsets = result_entries(txids, results)
    body = HeaderBody(
        height=5,
        time_ms=1_800_000_000_123,
        tx_root=merkle_root(txids),
        result_root=merkle_root(leaf_hashes(entries, offsets), hashed=True),
        state_root=bytes(32),
        history_root=bytes(32),
        proposer=key.public_key,
        seal_ref=bytes(32),
    )
    header = Header(bytes(32), body.commitment, body.time_ms // 1000)
    encoded = [transaction.encoded for transaction in transactions]
    return Block(
        header,
        body,
        make_seal(key, CHAIN_ID, header, body, len(codes)),
        b"".join(encoded),
        struct.pack(f"<{len(encoded)}I", *map(len, encoded)),
        results,
    )


def is_sound(block: Block) -> bool:
    """Whether a decoded block's contents are those that its header and seal vouch for."""
    try:
        transactions = [Transaction.decode(block.transaction_bytes(i)) for i in range(block.count)]
        for transaction in transactions:
            verify_one(transaction.txid, transaction.encoded[-64:], transaction.signer)
        check_seal(block, CHAIN_ID)
    except InputError:
        return False
    txids = b"".join(transaction.txid for transaction in transactions)
    entries, offsets = result_entries(txids, block.results)
    roots = (merkle_root(txids), merkle_root(leaf_hashes(entries, offsets), hashed=True))
    return roots == (block.body.tx_root, block.body.result_root)


def mutations(data: bytes, deltas: tuple[int, ...] = DELTAS):
    """(offset, damaged copy) of every byte."""
    for at in range(len(data)):
        for delta in deltas:
            yield at, data[:at] + bytes([data[at] ^ delta]) + data[at + 1 :]


# Round trips.


@QUICK
@given(body=BODY, chain_id=st.binary(min_size=8, max_size=8), times=st.tuples(*[st.integers(0, 2**53)] * 2))
def test_a_transaction_reads_as_it_was_signed(body: Body, chain_id: bytes, times: tuple[int, int]) -> None:
    # SPEC-TX-4, SPEC-BODY-1
    made = signed(body, chain_id=chain_id, issued_ms=times[0], expires_ms=times[1], nonce=UINT64_MAX)
    read = Transaction.decode(made.encoded)
    assert read == made
    assert read.body == body
    assert (read.chain_id, read.issued_ms, read.expires_ms, read.nonce) == (chain_id, *times, UINT64_MAX)
    assert read.signer == KEY.public_key
    assert type(read.body) is type(body)


@QUICK
@given(body=BODY)
def test_a_body_survives_the_codec(body: Body) -> None:  # SPEC-BODY-1
    value = decode(encode(body_map(body)))
    kinds = [kind for kind, known in BODIES.items() if known is type(body)]
    assert parse_body(kinds[0], value) == body


@QUICK
@given(header=HEADERS)
def test_headers_round_trip(header: Header) -> None:  # SPEC-BLK-1
    assert len(header.encode()) == 80
    assert Header.decode(header.encode()) == header
    assert header.block_id == sha256(sha256(header.encode()).digest()).digest()


@QUICK
@given(body=BODIES_OF_HEADERS)
def test_header_bodies_round_trip(body: HeaderBody) -> None:  # SPEC-BLK-2
    assert HeaderBody.decode(body.encode()) == body
    assert body.commitment == sha256(body.encode()).digest()


@QUICK
@given(codes=st.lists(st.sampled_from([0, 200, 242, 0xFFFF]), max_size=9), hints=st.binary(max_size=9))
def test_blocks_round_trip(codes: list[int], hints: bytes) -> None:  # SPEC-BLK-3
    transactions = [registration(nonce) for nonce in range(len(codes))]
    block = replace(block_of(transactions, codes), hints=hints)
    read = Block.decode(block.encode())
    assert read == block
    assert read.encode() == block.encode()
    assert (read.count, read.height, read.block_id) == (len(codes), 5, block.header.block_id)
    assert [read.transaction_bytes(i) for i in range(read.count)] == [item.encoded for item in transactions]
    assert [read.result(i) for i in range(read.count)] == codes
    assert is_sound(read)


@QUICK
@given(
    created_ms=st.integers(0, 1000 * 2**32 - 1),
    proposers=st.lists(st.binary(min_size=33, max_size=33), min_size=1, max_size=4),
    authorities=st.lists(
        st.builds(Authority, st.binary(min_size=33, max_size=33), KEM_PUBLIC),
        max_size=3,
        unique_by=lambda authority: authority.key,
    ),
    salt=st.binary(min_size=16, max_size=16),
)
def test_genesis_documents_round_trip(
    created_ms: int, proposers: list[bytes], authorities: list[Authority], salt: bytes
) -> None:  # SPEC-GEN-1
    genesis = Genesis(created_ms, tuple(proposers), tuple(authorities), salt=salt).checked()
    read = Genesis.decode(genesis.encoded)
    assert read == genesis
    assert read.encoded == genesis.encoded
    assert read.chain_id == sha256(genesis.encoded).digest()[:8]
    first = read.block(bytes(32))
    assert (first.height, first.count, first.body.seal_ref) == (0, 0, genesis.digest)
    assert Block.decode(first.encode()) == first


# Any bytes decode or raise a typed error, and what decodes encodes to itself.


def reencoded(decoder: Any, data: bytes) -> bytes | None:
    """What ``data`` decodes to, encoded again; None where it is refused. Any other error fails the test."""
    try:
        value = decoder(data)
    except FastLedgerError:
        return None
    encoded: bytes = value.encoded if hasattr(value, "encoded") else value.encode()
    return encoded


DECODERS = [
    Transaction.decode,
    Block.decode,
    Header.decode,
    HeaderBody.decode,
    Genesis.decode,
    SealHeader.decode,
]


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.__qualname__)
@QUICK
@given(data=st.binary(max_size=200) | CBOR_VALUES.map(encode))
def test_any_bytes_decode_or_are_refused(decoder: Any, data: bytes) -> None:  # SPEC-CBOR-1
    assert reencoded(decoder, data) in (None, data)


@QUICK
@given(value=CBOR_VALUES, junk=st.binary(max_size=100))
def test_the_codec_gives_back_what_it_took(value: Any, junk: bytes) -> None:  # SPEC-CBOR-1
    assert decode(encode(value)) == value
    with suppress(InputError):
        decode(junk)


@QUICK
@given(
    fields=st.fixed_dictionaries(
        {
            "version": st.just(3) | CBOR_VALUES,
            "rule_set": st.just(1) | CBOR_VALUES,
            "activation_quorum": st.just(0) | CBOR_VALUES,
            "created_ms": st.integers(-5, 2**60) | CBOR_VALUES,
            "engine": st.just("solo") | CBOR_VALUES,
            "proposers": st.lists(st.binary(min_size=33, max_size=33), max_size=2) | CBOR_VALUES,
            "authorities": st.lists(st.lists(st.binary(min_size=33, max_size=33), max_size=3), max_size=2)
            | CBOR_VALUES,
            "salt": st.binary(min_size=16, max_size=16) | CBOR_VALUES,
        }
    )
)
def test_any_genesis_fields_decode_or_are_refused(fields: dict[str, Any]) -> None:  # SPEC-GEN-1
    data = encode(fields)
    found = reencoded(Genesis.decode, data)
    assert found in (None, data)
    if found is not None:
        Genesis.decode(data).block(bytes(32)).encode()


@QUICK
@given(parts=st.lists(CBOR_VALUES, min_size=7, max_size=7))
def test_any_block_parts_decode_or_are_refused(parts: list[Any]) -> None:  # SPEC-BLK-3
    data = encode([1, *parts])
    assert reencoded(Block.decode, data) in (None, data)


@QUICK
@given(parts=st.lists(CBOR_VALUES, min_size=4, max_size=4), receipt=st.binary(max_size=80))
def test_any_statement_is_refused(parts: list[Any], receipt: bytes) -> None:  # SPEC-RCP-5
    for data in (b"\xd2" + encode(parts), encode(parts), b"\xd2" + receipt, receipt):
        with pytest.raises(InputError):
            verify_statement(data, chain_id=CHAIN_ID, proposers=[KEY.public_key])


@QUICK
@given(kind=st.sampled_from([*sorted(BODIES), "record.shred"]), value=CBOR_VALUES)
def test_any_body_parses_or_is_refused(kind: str, value: Any) -> None:  # SPEC-BODY-1
    try:
        parse_body(kind, value)
    except InputError as error:
        assert error.code in (Code.BAD_BODY, Code.UNKNOWN_KIND)


def outcome_of(parse: Callable[[], Body]) -> Body | Code:
    try:
        return parse()
    except InputError as error:
        return error.code


@QUICK
@given(
    kind=st.sampled_from([*sorted(BODIES), "record.shred"]),
    body=BODY,
    changes=st.dictionaries(
        st.sampled_from(["role", "kem", "epoch", "tokens", "x"]), CBOR_VALUES, max_size=2
    ),
)
def test_both_decoders_of_bodies_agree(kind: str, body: Body, changes: dict[str, Any]) -> None:
    """The border reads what the native scan translates, others the CBOR: one verdict on either way (SPEC-BODY-1)."""
    known = next(name for name, struct_type in BODIES.items() if struct_type is type(body))
    for name in (kind, known):
        value = body_map(body) | changes
        payload = encode([CHAIN_ID, name, 1, 2, 3, value])
        encoded = encode([b"\xa2\x01\x38\x2e\x04\x58\x21" + KEY.public_key, {}, payload, bytes(64)])
        data = b"\xd2" + encoded
        scan = scan_many(data, array("Q", (0, len(data))))
        assert scan.status(0) == Code.OK
        native = outcome_of(partial(REGISTRY.rules(1).decode_body, name, scan.body_as_msgpack(0)))
        assert native == outcome_of(partial(parse_body, name, value))
        if not changes and name == known:
            assert native == body


def test_a_refused_body_does_not_tell_its_values() -> None:  # SPEC-PRIV-2
    for value in ({"role": "Jane Roe", "kem": KEM}, {"role": "patient", "kem": KEM, "Jane Roe": 1}):
        with pytest.raises(InputError) as error:
            parse_body("identity.register", value)
        assert "Jane" not in str(error.value)


# Refusals, one by one.


GENESIS = Genesis(0, (bytes(33),), salt=bytes(16))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 4},
        {"version": True},
        {"rule_set": 0},
        {"rule_set": True},
        {"rule_set": 1_001},
        {"activation_quorum": 1},
        {"activation_quorum": -1},
        {"version": "1"},
        {"created_ms": -1},
        {"created_ms": 1000 * 2**32},
        {"created_ms": False},
        {"engine": "pow"},
        {"engine": b"solo"},
        {"proposers": []},
        {"proposers": [bytes(32)]},
        {"proposers": [1]},
        {"proposers": bytes(33)},
        {"authorities": [[bytes(33)]]},
        {"authorities": [[bytes(33), KEM], [bytes(33), KEM]]},
        {"authorities": [[bytes(32), KEM]]},
        {"authorities": [[bytes(33), KEM[:-1]]]},
        {"authorities": [[bytes(33), b""]]},
        {"authorities": {}},
        {"salt": bytes(15)},
        {"salt": "0123456789abcdef"},
        {"note": "more"},
    ],
    ids=str,
)
def test_wrong_genesis_documents_are_refused(changes: dict[str, Any]) -> None:  # SPEC-GEN-1
    with pytest.raises(InputError) as error:
        Genesis.decode(encode(cbor2.loads(GENESIS.encoded) | changes))
    assert error.value.code == Code.BAD_GENESIS


def test_a_genesis_document_lacks_no_field() -> None:  # SPEC-GEN-1
    whole = cbor2.loads(GENESIS.encoded)
    assert Genesis.decode(encode(whole)) == GENESIS
    for name in whole:
        with pytest.raises(InputError):
            Genesis.decode(encode({key: value for key, value in whole.items() if key != name}))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (0, 2),
        (0, True),
        (1, bytes(79)),
        (2, b"\x80"),
        (4, None),
        (5, bytes(3)),
        (5, bytes(8)),
        (5, b"\xff\xff\xff\xff"),
        (6, b""),
        (7, b""),
        (7, bytes(4)),
    ],
)
def test_wrong_blocks_are_refused(part: int, value: Any) -> None:  # SPEC-BLK-3
    parts = cbor2.loads(block_of([registration()], [0]).encode())
    assert Block.decode(encode(parts)).count == 1
    with pytest.raises(InputError) as error:
        Block.decode(encode([*parts[:part], value, *parts[part + 1 :]]))
    assert error.value.code == Code.BAD_BLOCK


def test_a_header_commits_to_its_body_and_time() -> None:  # SPEC-BLK-2
    block = block_of([registration()], [0])
    for header in (
        replace(block.header, version=2),
        replace(block.header, commitment=bytes(32)),
        replace(block.header, time_s=block.header.time_s + 1),
    ):
        with pytest.raises(InputError) as error:
            Block.decode(replace(block, header=header).encode())
        assert error.value.code == Code.BAD_BLOCK


# Damage.


def test_no_damaged_byte_of_a_transaction_keeps_its_id_and_signature() -> None:  # SPEC-TX-1, SPEC-TX-5
    made = registration()
    for at, damaged in mutations(made.encoded):
        found = reencoded(Transaction.decode, damaged)
        assert found in (None, damaged)
        if found is not None:
            in_signature = at >= len(made.encoded) - 64
            assert (Transaction.decode(damaged).txid == made.txid) == in_signature


def test_no_damaged_byte_of_a_genesis_document_keeps_the_chain_id() -> None:  # SPEC-GEN-1
    for _, damaged in mutations(GENESIS.encoded, tuple(range(1, 256))):
        found = reencoded(Genesis.decode, damaged)
        assert found in (None, damaged)
        assert found is None or Genesis.decode(damaged).chain_id != GENESIS.chain_id


def test_no_damaged_byte_of_a_block_goes_unseen() -> None:  # SPEC-BLK-2, SPEC-BLK-3
    block = block_of([registration(nonce) for nonce in range(3)], [0, 200, 0])
    for at, damaged in mutations(block.encode()):
        found = reencoded(Block.decode, damaged)
        assert found in (None, damaged), at
        assert found is None or not is_sound(Block.decode(damaged)), at


# Frozen vectors.


@pytest.fixture(scope="module")
def vectors() -> dict[str, bytes]:
    return {name: bytes.fromhex(value) for name, value in json.loads(VECTORS.read_text()).items()}


def test_vectors_verify_without_the_engine(vectors: dict[str, bytes]) -> None:
    """hashlib and cbor2 alone: what any other implementation has to come to (SPEC-TX-5, SPEC-BLK-1, SPEC-GEN-1)."""
    assert sha256(vectors["genesis"]).digest()[:8] == vectors["chain_id"]
    genesis = cbor2.loads(vectors["genesis"])
    fields = ["salt", "engine", "version", "rule_set", "proposers", "created_ms", "authorities", "activation_quorum"]
    assert list(genesis) == fields
    assert (genesis["version"], genesis["rule_set"], genesis["activation_quorum"]) == (3, 1, 1)
    protected, unprotected, payload, signature = cbor2.loads(vectors["transaction"]).value
    structure = cbor2.dumps(["Signature1", protected, b"", payload])
    assert sha256(structure).digest() == vectors["txid"]
    assert (unprotected, len(signature)) == ({}, 64)
    chain_id, kind, issued_ms, expires_ms, nonce, body = cbor2.loads(payload)
    assert (chain_id, kind, nonce) == (vectors["chain_id"], "identity.register", 7)
    assert (issued_ms - genesis["created_ms"], expires_ms - issued_ms) == (1_000, 60_000)
    assert body["role"] == "patient"
    fields = struct.unpack("<I32s32sIII", vectors["header"])
    commitment = sha256(vectors["header_body"]).digest()
    assert fields == (1, vectors["genesis_block_id"], commitment, issued_ms // 1000 + 1, 0, 0)
    assert sha256(sha256(vectors["header"]).digest()).digest() == vectors["block_id"]
    height, time_ms, tx_root, result_root, *_, proposer, _, extra_nonce = cbor2.loads(vectors["header_body"])
    assert (height, time_ms // 1000, extra_nonce) == (1, fields[3], 0)
    assert proposer == genesis["proposers"][0]
    assert tx_root == sha256(b"\x00" + vectors["txid"]).digest()
    assert result_root == sha256(b"\x00" + vectors["txid"] + b"\0\0").digest()
    parts = [1, vectors["header"], vectors["header_body"], vectors["seal"], b""]
    length = len(vectors["transaction"]).to_bytes(4, "little")
    assert vectors["block"] == cbor2.dumps([*parts, length, vectors["transaction"], b"\0\0"])


def test_the_engine_makes_the_vectors(vectors: dict[str, bytes]) -> None:  # SPEC-TX-1, SPEC-GEN-1, SPEC-BLK-1
    genesis = Genesis.decode(vectors["genesis"])
    assert (genesis.encoded, genesis.chain_id) == (vectors["genesis"], vectors["chain_id"])
    assert genesis.block(bytes(32)).block_id == vectors["genesis_block_id"]
    read = Transaction.decode(vectors["transaction"])
    assert read.txid == vectors["txid"]
    again = Transaction.sign(
        SigningKey.from_bytes(vectors["signer_secret"]),
        chain_id=read.chain_id,
        body=read.body,
        issued_ms=read.issued_ms,
        expires_ms=read.expires_ms,
        nonce=read.nonce,
    )
    assert again.encoded == vectors["transaction"]
    block = Block.decode(vectors["block"])
    assert (block.block_id, block.header.encode()) == (vectors["block_id"], vectors["header"])
    assert block.body.encode() == vectors["header_body"]
    verified = verify_statement(vectors["statement"], chain_id=genesis.chain_id, proposers=genesis.proposers)
    assert (verified.transaction, verified.block_id, verified.code) == (read, vectors["block_id"], Code.OK)
    with pytest.raises(ReceiptError):
        verify_statement(vectors["statement"], chain_id=bytes(8), proposers=genesis.proposers)


def test_the_generator_writes_the_vectors(vectors: dict[str, bytes]) -> None:
    from vectors.make_model import make

    assert {name: bytes.fromhex(value) for name, value in make().items()} == vectors


def test_identity_ids_are_frozen() -> None:  # SPEC-ID-1
    assert identity_id(bytes(33)) == sha256(b"fastledger/identity/v1" + bytes(33)).digest()[:16]


# Bitcoin's own headers: the same 80 bytes, the same ids.

# The first block of Bitcoin's main chain and its id as everyone prints it.
BITCOIN_FIRST_HEADER = bytes.fromhex(
    "0100000000000000000000000000000000000000000000000000000000000000000000003ba3edfd7a7b12b27ac72c3e67768f61"
    "7fc81bc3888a51323a9fb8aa4b1e5e4a29ab5f49ffff001d1dac2b7c"
)
BITCOIN_FIRST_ID = "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"


def test_the_first_bitcoin_header_has_its_id() -> None:  # SPEC-BLK-1
    header = Header.decode(BITCOIN_FIRST_HEADER)
    assert header.encode() == BITCOIN_FIRST_HEADER
    assert header.block_id[::-1].hex() == BITCOIN_FIRST_ID
    assert (header.version, header.time_s, header.bits, header.nonce) == (
        1,
        1_231_006_505,
        0x1D00FFFF,
        2_083_236_893,
    )


@pytest.mark.data
def test_bitcoin_headers_link_by_our_ids(shared_data: Path) -> None:  # SPEC-BLK-1
    data = (shared_data / "bitcoin" / "headers-0-3999.bin").read_bytes()
    headers = [Header.decode(data[at : at + 80]) for at in range(0, len(data), 80)]
    assert len(headers) == 4_000
    assert headers[0].encode() == BITCOIN_FIRST_HEADER
    assert b"".join(header.encode() for header in headers) == data
    for before, after in pairwise(headers):
        assert after.previous_id == before.block_id
