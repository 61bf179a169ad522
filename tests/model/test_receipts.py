"""Receipts and transparent statements: what a stranger with the genesis document alone can check (SPEC-RCP)."""

from collections.abc import Callable, Iterator
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import World, make_world

from fastledger import Code, Genesis, Purpose, Role, SigningKey, Transaction, Verified, verify_statement
from fastledger.errors import NotFoundError, ReceiptError, TransactionError
from fastledger.model.codec import encode
from fastledger.model.receipt import (
    BLOCK_LABEL,
    INCLUSION_PROOFS,
    OUTCOME_LABEL,
    PROOFS_LABEL,
    RECEIPTS_LABEL,
    STATEMENT_BYTES_MAX,
)
from fastledger.subjects.consent import CONSENT_MISSING
from fastledger.subjects.identity import UNKNOWN_SUBJECT

# Around every power of two that a proof's shape turns on.
BLOCK_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65)


class Stranger:
    """Somebody who has the genesis document and nothing else."""

    def __init__(self, genesis: bytes) -> None:
        document = Genesis.decode(genesis)
        self.chain_id = document.chain_id
        self.proposers = document.proposers

    def verify(self, statement: bytes) -> Verified:
        return verify_statement(statement, chain_id=self.chain_id, proposers=self.proposers)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One ledger with a block of each size; every third transaction is refused by the rules."""
    world = make_world(tmp_path_factory.mktemp("receipts") / "ledger")
    for size in BLOCK_SIZES:
        world.ledger.submit([some_transaction(world, number) for number in range(size)])
    yield world
    world.close()


def some_transaction(world: World, number: int) -> Transaction:
    if number % 3 == 2:
        return world.doctor.revoke_identity(bytes(16))
    return world.hospital.endorse(world.doctor.identity, Role.PRACTITIONER)


@pytest.fixture(scope="module")
def stranger(chain: World) -> Stranger:
    return Stranger((chain.path / "genesis.cbor").read_bytes())


def block_of_size(chain: World, size: int) -> int:
    """The height of the block with ``size`` transactions; block 1 settled the world."""
    return 2 + BLOCK_SIZES.index(size)


def txid_at(chain: World, size: int, index: int) -> bytes:
    block = chain.ledger.block(block_of_size(chain, size))
    return Transaction.decode(block.transaction_bytes(index)).txid


@pytest.fixture(scope="module")
def statement(chain: World) -> bytes:
    """The statement of the fifth of five transactions: its path is shorter than the others'."""
    return chain.ledger.prove(txid_at(chain, 5, 4))


# What verifies.


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_every_transaction_of_a_block_has_its_receipt(chain: World, stranger: Stranger, size: int) -> None:
    # SPEC-RCP-2, SPEC-RCP-3, SPEC-RCP-4
    height = block_of_size(chain, size)
    block = chain.ledger.block(height)
    assert block.count == size
    for index in range(size):
        txid = txid_at(chain, size, index)
        verified = stranger.verify(chain.ledger.prove(txid))
        assert (verified.transaction.txid, verified.height, verified.index) == (txid, height, index)
        assert verified.code == (UNKNOWN_SUBJECT if index % 3 == 2 else Code.OK)
        assert (verified.block_id, verified.time_ms) == (block.block_id, block.body.time_ms)
        assert verified.proposer == chain.ledger.genesis.proposers[0]
        assert verified.transaction.encoded == block.transaction_bytes(index)


def test_a_refused_read_proves_its_refusal(world: World) -> None:  # SPEC-RCP-2, SPEC-ACC-2
    sealed = world.put()
    access = world.clinic.access(sealed.record, Purpose.TREATMENT)
    assert world.ledger.submit([access])[0].code == CONSENT_MISSING
    verified = Stranger(world.ledger.genesis.encoded).verify(world.ledger.prove(access.txid))
    assert (verified.code, verified.transaction.kind) == (CONSENT_MISSING, "access.read")


def test_a_receipt_is_the_same_after_reopening(world: World) -> None:  # SPEC-RCP-1
    sealed = world.put()
    before = world.ledger.prove(sealed.transaction.txid)
    assert world.reopen().prove(sealed.transaction.txid) == before
    assert Stranger(world.ledger.genesis.encoded).verify(before).code == Code.OK


def test_what_is_not_in_the_chain_has_no_receipt(chain: World) -> None:
    for txid in (bytes(32), b"", bytes(31)):
        with pytest.raises(NotFoundError):
            chain.ledger.prove(txid)


# What does not.


def test_another_chain_or_proposer_is_refused(chain: World, stranger: Stranger, statement: bytes) -> None:
    # SPEC-RCP-4
    proposers = list(stranger.proposers)
    other = SigningKey.generate().public_key
    assert verify_statement(statement, chain_id=stranger.chain_id, proposers=[other, *proposers])
    for chain_id, keys in ((bytes(8), proposers), (stranger.chain_id, [other]), (stranger.chain_id, [])):
        with pytest.raises(ReceiptError) as error:
            verify_statement(statement, chain_id=chain_id, proposers=keys)
        assert error.value.code == Code.BAD_RECEIPT


def test_a_receipt_does_not_fit_another_transaction(chain: World, stranger: Stranger) -> None:  # SPEC-RCP-5
    """Of the same block, of another block at the same place, or with the transaction's own bytes changed."""
    own = cbor2.loads(chain.ledger.prove(txid_at(chain, 8, 0))).value
    for size, index in ((8, 1), (8, 7), (9, 0), (1, 0)):
        other = cbor2.loads(chain.ledger.prove(txid_at(chain, size, index))).value
        swapped = sign1([other[0], own[1], other[2], other[3]])
        with pytest.raises(ReceiptError):
            stranger.verify(swapped)
    assert stranger.verify(sign1(own)).index == 0


def test_no_damaged_byte_goes_unseen(stranger: Stranger, statement: bytes) -> None:  # SPEC-RCP-5
    stranger.verify(statement)
    for at in range(len(statement)):
        for delta in (1, 2, 0x20, 0x55, 0x80, 0xFF):
            damaged = statement[:at] + bytes([statement[at] ^ delta]) + statement[at + 1 :]
            with pytest.raises((ReceiptError, TransactionError)):
                stranger.verify(damaged)


def test_no_other_byte_fits_where_a_number_stands(stranger: Stranger, statement: bytes) -> None:
    """Parts that no signature covers: a code of ``false`` or a count of 6 for 5 once verified (SPEC-RCP-5)."""
    tag = cbor2.loads(statement)
    (receipt,) = tag.value[1][RECEIPTS_LABEL]
    start = statement.index(receipt)
    for at in range(start + 2, start + len(receipt) - 64):
        for value in (0x00, 0x01, 0x05, 0x06, 0x07, 0x80, 0x82, 0xA0, 0xE0, 0xF4, 0xF5, 0xF6):
            if statement[at] != value:
                with pytest.raises((ReceiptError, TransactionError)):
                    stranger.verify(statement[:at] + bytes([value]) + statement[at + 1 :])


def test_cut_and_lengthened_statements_are_refused(stranger: Stranger, statement: bytes) -> None:
    for end in range(len(statement)):
        with pytest.raises((ReceiptError, TransactionError)):
            stranger.verify(statement[:end])
    for more in (b"\0", statement, bytes(STATEMENT_BYTES_MAX)):
        with pytest.raises(ReceiptError):
            stranger.verify(statement + more)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_rearranged_statement_verifies(statement: bytes, stranger: Stranger, data: st.DataObject) -> None:
    places = st.integers(0, len(statement))
    first, second, third = sorted(data.draw(st.tuples(places, places, places)))
    middle = data.draw(st.binary(max_size=9)) if data.draw(st.booleans()) else statement[second:third]
    changed = statement[:first] + middle + statement[data.draw(st.sampled_from((second, third))) :]
    if changed == statement:
        return
    with pytest.raises((ReceiptError, TransactionError)):
        stranger.verify(changed)


# Forgeries that know the format.


def sign1(parts: list[Any]) -> bytes:
    return b"\xd2" + encode(parts)


def forged(statement: bytes, change: Callable[[dict[int, Any], list[Any]], None]) -> bytes:
    """``statement`` with its receipt's unprotected header and its parts changed, encoded as it must be."""
    outer = list(cbor2.loads(statement).value)
    inner = list(cbor2.loads(outer[1][RECEIPTS_LABEL][0]).value)
    inner[1] = dict(inner[1])
    change(inner[1], inner)
    outer[1] = {RECEIPTS_LABEL: [sign1(inner)]}
    return sign1(outer)


def in_proof(position: int, value: Any) -> Callable[[dict[int, Any], list[Any]], None]:
    """A change of the inclusion proof [tree size, index, path]."""

    def change(header: dict[int, Any], _parts: list[Any]) -> None:
        proof = list(cbor2.loads(header[PROOFS_LABEL][INCLUSION_PROOFS][0]))
        proof[position] = value
        header[PROOFS_LABEL] = {INCLUSION_PROOFS: [encode(proof)]}

    return change


def in_outcome(position: int, value: Any) -> Callable[[dict[int, Any], list[Any]], None]:
    """A change of the outcome [header, header body, code, path]."""

    def change(header: dict[int, Any], _parts: list[Any]) -> None:
        outcome = list(cbor2.loads(header[OUTCOME_LABEL]))
        outcome[position] = value
        header[OUTCOME_LABEL] = encode(outcome)

    return change


def test_the_forger_can_leave_all_as_it_is(stranger: Stranger, statement: bytes) -> None:
    """The tools below change nothing but what they are told to."""
    assert forged(statement, lambda _header, _parts: None) == statement
    assert forged(statement, in_proof(0, 5)) == statement
    assert forged(statement, in_outcome(2, 0)) == statement


@pytest.mark.parametrize(
    "change",
    [
        in_proof(0, 6),
        in_proof(0, 4),
        in_proof(0, 0),
        in_proof(0, 2**64 - 1),
        in_proof(0, True),
        in_proof(0, "5"),
        in_proof(1, 3),
        in_proof(1, -1),
        in_proof(1, 2**63),
        in_proof(1, None),
        in_proof(2, []),
        in_proof(2, [bytes(31)]),
        in_proof(2, [bytes(32)] * 1000),
        in_proof(2, {}),
        in_outcome(0, bytes(80)),
        in_outcome(0, "header"),
        in_outcome(1, b""),
        in_outcome(1, None),
        in_outcome(2, int(UNKNOWN_SUBJECT)),
        in_outcome(2, 7),
        in_outcome(2, False),
        in_outcome(2, -1),
        in_outcome(2, "ok"),
        in_outcome(3, []),
        in_outcome(3, 1),
    ],
)
def test_changed_proofs_and_outcomes_are_refused(
    stranger: Stranger, statement: bytes, change: Callable[[dict[int, Any], list[Any]], None]
) -> None:  # SPEC-RCP-4, SPEC-RCP-5
    with pytest.raises(ReceiptError):
        stranger.verify(forged(statement, change))


def test_a_place_cannot_be_told_otherwise(stranger: Stranger, statement: bytes) -> None:
    """The fifth of five has the path that the second of two would have: the seal's count tells them apart."""
    assert stranger.verify(statement).index == 4

    def move(header: dict[int, Any], parts: list[Any]) -> None:
        in_proof(0, 2)(header, parts)
        in_proof(1, 1)(header, parts)

    with pytest.raises(ReceiptError, match="count"):
        stranger.verify(forged(statement, move))


def drop(label: int) -> Callable[[dict[int, Any], list[Any]], None]:
    return lambda header, _parts: header.pop(label) and None


def put(label: int, value: Any) -> Callable[[dict[int, Any], list[Any]], None]:
    return lambda header, _parts: header.update({label: value})


def part(position: int, value: Any) -> Callable[[dict[int, Any], list[Any]], None]:
    def change(_header: dict[int, Any], parts: list[Any]) -> None:
        parts[position] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        drop(PROOFS_LABEL),
        drop(OUTCOME_LABEL),
        put(4, b"more"),
        put(PROOFS_LABEL, {}),
        put(PROOFS_LABEL, [b""]),
        put(PROOFS_LABEL, {INCLUSION_PROOFS: []}),
        put(PROOFS_LABEL, {INCLUSION_PROOFS: [b"", b""]}),
        put(PROOFS_LABEL, {INCLUSION_PROOFS: [1]}),
        put(PROOFS_LABEL, {-2: [b""]}),
        put(OUTCOME_LABEL, b""),
        put(OUTCOME_LABEL, 0),
        put(OUTCOME_LABEL, b"\x80"),
        part(0, b""),
        part(0, b"\xa0"),
        part(2, bytes(32)),
        part(3, bytes(64)),
        part(3, bytes(63)),
        part(3, b""),
        part(3, 64),
    ],
)
def test_receipts_of_another_shape_are_refused(
    stranger: Stranger, statement: bytes, change: Callable[[dict[int, Any], list[Any]], None]
) -> None:  # SPEC-RCP-2
    with pytest.raises(ReceiptError):
        stranger.verify(forged(statement, change))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, 5),
        (0, "chain-id"),
        (1, "height"),
        (1, -1),
        (1, False),
        (2, b""),
        (2, None),
        (3, 6),
        (3, None),
        (None, []),
        (None, 7),
    ],
)
def test_seal_headers_of_another_shape_are_refused(
    stranger: Stranger, statement: bytes, position: int | None, value: Any
) -> None:  # SPEC-RCP-1
    """Numbers where ids belong once ended in a TypeError, before any signature was looked at."""

    def change(_header: dict[int, Any], parts: list[Any]) -> None:
        protected = cbor2.loads(parts[0])
        if position is None:
            protected[BLOCK_LABEL] = value
        else:
            protected[BLOCK_LABEL][position] = value
        parts[0] = encode(protected)

    with pytest.raises(ReceiptError):
        stranger.verify(forged(statement, change))


@pytest.mark.parametrize(
    "unprotected",
    [{}, {RECEIPTS_LABEL: []}, {RECEIPTS_LABEL: b""}, {RECEIPTS_LABEL: [7]}, {RECEIPTS_LABEL: {}}, {4: b""}],
    ids=str,
)
def test_a_statement_carries_exactly_one_receipt(
    stranger: Stranger, statement: bytes, unprotected: dict[int, Any]
) -> None:  # SPEC-RCP-3
    protected, held, payload, signature = cbor2.loads(statement).value
    (receipt,) = held[RECEIPTS_LABEL]
    for header in (
        unprotected,
        {RECEIPTS_LABEL: [receipt, receipt]},
        {RECEIPTS_LABEL: [receipt], 4: b""},
    ):
        with pytest.raises(ReceiptError):
            stranger.verify(sign1([protected, header, payload, signature]))


def test_the_transaction_inside_must_be_signed_by_its_signer(stranger: Stranger, statement: bytes) -> None:
    # SPEC-RCP-4
    protected, held, payload, signature = cbor2.loads(statement).value
    with pytest.raises(TransactionError) as error:
        stranger.verify(sign1([protected, held, payload, signature[:-1] + bytes([signature[-1] ^ 1])]))
    assert error.value.code == Code.BAD_SIGNATURE


def test_other_encodings_of_a_good_statement_are_refused(stranger: Stranger, statement: bytes) -> None:
    # SPEC-CBOR-1
    value = cbor2.loads(statement).value
    assert sign1(value) == statement
    others = (
        b"\xd8\x12" + statement[1:],
        statement[1:],
        b"\xd2\x9f" + b"".join(map(encode, value)) + b"\xff",
        b"\xd2\x98\x04" + b"".join(map(encode, value)),
    )
    for other in others:
        with pytest.raises(ReceiptError):
            stranger.verify(other)
