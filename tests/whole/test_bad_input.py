"""What bad input gets: one outcome or typed error with a stable code, no payload bytes, and the rest goes through."""

import hashlib
import itertools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import VITALS, World, make_world, new_wallet

from fastledger import Code, Ledger, Outcome, Purpose, Right, Role, Transaction, Wallet
from fastledger.crypto.signing import ORDER
from fastledger.errors import FastLedgerError, InputError, LedgerError
from fastledger.limits import (
    BATCH_BYTES_MAX,
    BATCH_TRANSACTIONS_MAX,
    CLOCK_SKEW_MS_MAX,
    TRANSACTION_BYTES_MAX,
    VALIDITY_WINDOW_MS_MAX,
)
from fastledger.model.body import Body
from fastledger.model.transaction import ENVELOPE_PREFIX, PROTECTED_PREFIX, signing_input
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.consent import UNKNOWN_CONSENT
from fastledger.subjects.folder import NOT_OWNER
from fastledger.subjects.identity import ALREADY_REGISTERED, NOT_AUTHORISED, UNKNOWN_SIGNER
from fastledger.subjects.record import UNKNOWN_RECORD, RecordErase

BODIES = {name: kind.body for name, kind in REGISTRY.kinds.items()}

SECRET = "S3CRET-diagnosis-7f3a"
SECRET_BYTES = SECRET.encode()

# Numbers are for ever: a code may be added here, never changed or removed.
CODES = """
0 ok
100 malformed 101 oversized 102 non-canonical 103 bad-header 104 bad-signature 105 bad-key 106 wrong-chain 107 expired
108 not-yet-valid 109 window-too-long 110 duplicate 111 unknown-kind 112 bad-body 113 blob-missing
200 kind-not-in-force
300 bad-resource 301 bad-envelope 302 bad-keystore 303 wrong-password 304 bad-receipt 305 not-found 306 bad-genesis
307 bad-block 308 bad-query 309 unknown-folder-key 310 pruned 311 bad-config 312 bad-certificate 313 forbidden
314 rate-limited 315 unauthenticated 316 bad-request 317 upload-conflict 318 unknown-upload 319 unreachable
320 unknown-parent 321 below-final 322 tree-full 323 pool-full 324 not-a-proposer 325 read-only 330 bad-time
900 locked 901 closed 902 halted 903 busy 904 storage-full 905 corrupt 906 format-version 907 storage 908 cancelled
909 installation 910 release-needed
"""


def test_codes_are_stable() -> None:
    words = CODES.split()
    stable = dict(zip(map(int, words[::2]), words[1::2], strict=True))
    engine = {int(code): code.slug for code in Code.all() if code < 1_000}
    assert engine == stable
    assert Code.BAD_SIGNATURE.slug == "bad-signature"


# Building what no wallet would sign.


def payload(world: World, **changes: Any) -> list[Any]:
    now_ms = world.clock()
    fields = {
        "chain_id": world.ledger.chain_id,
        "kind": "record.erase",
        "issued_ms": now_ms,
        "expires_ms": now_ms + 60_000,
        "nonce": 7,
        "body": {"record": bytes(16), "reason": 1},
    }
    return list((fields | changes).values())


def signed(wallet: Wallet, fields: list[Any] | bytes) -> bytes:
    """A rightly signed COSE_Sign1 around any payload."""
    content = fields if isinstance(fields, bytes) else cbor2.dumps(fields, canonical=True)
    signature = wallet._key.sign(hashlib.sha256(signing_input(wallet.public_key, content)).digest())
    head = ENVELOPE_PREFIX + PROTECTED_PREFIX + wallet.public_key + b"\xa0"
    return head + cbor2.dumps(content) + b"\x58\x40" + signature


def with_body(world: World, kind: str, body: Any) -> bytes:
    return signed(world.patient, payload(world, kind=kind, body=body))


def high_s(encoded: bytes) -> bytes:
    s = int.from_bytes(encoded[-32:], "big")
    return encoded[:-32] + (ORDER - s).to_bytes(32, "big")


def good(world: World) -> bytes:
    return world.patient.erase_record(bytes(16)).encoded


def patched(encoded: bytes, at: int, byte: int) -> bytes:
    return encoded[:at] + bytes([byte]) + encoded[at + 1 :]


ERASE = {"record": bytes(16), "reason": 1}
PUT = {"digest": bytes(32), "epoch": 1, "folder": bytes(16), "record": bytes(16), "size": 9}

# Name -> what is submitted, and the code that it gets at the border. SPEC-ADM-1, SPEC-TX-1, SPEC-TX-9, SPEC-BODY-1
REJECTED: dict[str, tuple[Callable[[World], bytes], Code]] = {
    "empty": (lambda w: b"", Code.MALFORMED),
    "noise": (lambda w: SECRET_BYTES * 9, Code.MALFORMED),
    "truncated": (lambda w: good(w)[:-1], Code.MALFORMED),
    "extended": (lambda w: good(w) + b"\0", Code.MALFORMED),
    "oversized": (
        lambda w: with_body(w, "record.erase", {"x": bytes(TRANSACTION_BYTES_MAX)}),
        Code.OVERSIZED,
    ),
    "other algorithm": (lambda w: patched(good(w), 6, 0x26), Code.BAD_HEADER),
    "unsorted map": (
        lambda w: signed(w.patient, cbor2.dumps(payload(w, body={SECRET: 1, "a": 2}), canonical=False)),
        Code.NON_CANONICAL,
    ),
    "float": (lambda w: with_body(w, "record.erase", {"reason": 1.5}), Code.NON_CANONICAL),
    "tag": (lambda w: with_body(w, "record.erase", {"reason": cbor2.CBORTag(0, SECRET)}), Code.NON_CANONICAL),
    "other shape": (lambda w: signed(w.patient, [*payload(w), SECRET]), Code.MALFORMED),
    "body is no map": (lambda w: with_body(w, "record.erase", [SECRET]), Code.MALFORMED),
    "flipped signature": (lambda w: flipped_signature(good(w)), Code.BAD_SIGNATURE),
    "high s": (lambda w: high_s(good(w)), Code.BAD_SIGNATURE),
    "zero signature": (lambda w: good(w)[:-64] + bytes(64), Code.BAD_SIGNATURE),
    "another's key": (lambda w: swap_key(good(w), w.doctor.public_key), Code.BAD_SIGNATURE),
    "no key at all": (lambda w: swap_key(good(w), b"\x02" + b"\xff" * 32), Code.BAD_SIGNATURE),
    "wrong chain": (lambda w: signed(w.patient, payload(w, chain_id=b"elsewher")), Code.WRONG_CHAIN),
    "expired": (
        lambda w: signed(w.patient, payload(w, issued_ms=w.clock() - 10, expires_ms=w.clock() - 1)),
        Code.EXPIRED,
    ),
    "not yet valid": (lambda w: future(w, CLOCK_SKEW_MS_MAX + 1), Code.NOT_YET_VALID),
    "window too long": (
        lambda w: signed(w.patient, payload(w, expires_ms=w.clock() + VALIDITY_WINDOW_MS_MAX + 1)),
        Code.WINDOW_TOO_LONG,
    ),
    "empty window": (lambda w: signed(w.patient, payload(w, expires_ms=w.clock())), Code.WINDOW_TOO_LONG),
    "huge times": (
        lambda w: signed(w.patient, payload(w, issued_ms=2**64 - 2, expires_ms=2**64 - 1)),
        Code.NOT_YET_VALID,
    ),
    "unknown kind": (lambda w: with_body(w, "record.read", ERASE), Code.UNKNOWN_KIND),
    "missing field": (lambda w: with_body(w, "record.erase", {"record": bytes(16)}), Code.BAD_BODY),
    "unknown field": (lambda w: with_body(w, "record.erase", {**ERASE, "note": SECRET}), Code.BAD_BODY),
    "field named by number": (lambda w: with_body(w, "record.erase", {1: bytes(16)}), Code.BAD_BODY),
    "mistyped field": (lambda w: with_body(w, "record.erase", {**ERASE, "reason": SECRET}), Code.BAD_BODY),
    "text for bytes": (
        lambda w: with_body(w, "record.erase", {**ERASE, "record": SECRET[:16]}),
        Code.BAD_BODY,
    ),
    "short id": (lambda w: with_body(w, "record.erase", {**ERASE, "record": bytes(15)}), Code.BAD_BODY),
    "negative": (lambda w: with_body(w, "record.erase", {**ERASE, "reason": -1}), Code.BAD_BODY),
    "beyond u32": (lambda w: with_body(w, "record.erase", {**ERASE, "reason": 2**32}), Code.BAD_BODY),
    "bool for number": (lambda w: with_body(w, "record.erase", {**ERASE, "reason": True}), Code.BAD_BODY),
    "no key of any suite": (
        lambda w: with_body(w, "identity.register", {"role": "patient", "kem": bytes(40)}),
        Code.BAD_BODY,
    ),
    "unknown choice": (
        lambda w: with_body(w, "access.read", {"record": bytes(16), "purpose": SECRET}),
        Code.BAD_BODY,
    ),
    "envelope missing": (lambda w: with_body(w, "record.put", PUT), Code.BLOB_MISSING),
}

# What the rules refuse leaks nothing either: it stands in a block with its code. SPEC-STATE-4
REFUSED: dict[str, tuple[Callable[[World], bytes], Code]] = {
    "unknown signer": (
        lambda w: new_wallet(w.clock).join(w.ledger.chain_id).erase_record(bytes(16)).encoded,
        UNKNOWN_SIGNER,
    ),
    "unauthorised": (
        lambda w: w.doctor.endorse(w.clinic.identity, Role.ORGANISATION).encoded,
        NOT_AUTHORISED,
    ),
    "not the owner": (lambda w: w.doctor.rotate_folder(lent(w)).encoded, NOT_OWNER),
    "registered before": (lambda w: w.doctor.register(Role.PRACTITIONER).encoded, ALREADY_REGISTERED),
    "unknown record": (lambda w: w.patient.erase_record(bytes(16)).encoded, UNKNOWN_RECORD),
    "unknown consent": (lambda w: w.patient.revoke_consent(bytes(16)).encoded, UNKNOWN_CONSENT),
}


def flipped_signature(encoded: bytes) -> bytes:
    return encoded[:-1] + bytes([encoded[-1] ^ 1])


def swap_key(encoded: bytes, key: bytes) -> bytes:
    return encoded[:11] + key + encoded[44:]


def future(world: World, ahead_ms: int) -> bytes:
    issued_ms = world.clock() + ahead_ms
    return signed(world.patient, payload(world, issued_ms=issued_ms, expires_ms=issued_ms + 1000))


def lent(world: World) -> bytes:
    key = world.patient.folder_key("vitals")
    world.doctor.add_folder_key(key)
    return key.folder


def module_world(path: Path) -> Iterator[World]:
    made = make_world(path / "ledger")
    lent(made)
    yield made
    assert made.ledger.verify().problems == []
    made.close()


@pytest.fixture(scope="module")
def steady_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One world for all cases: none of them may change it."""
    yield from module_world(tmp_path_factory.mktemp("steady"))


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One world for all examples, whatever they make of it."""
    yield from module_world(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize("name", REJECTED)
def test_a_rejected_transaction_has_its_code_and_stands_nowhere(steady_world: World, name: str) -> None:
    make, code = REJECTED[name]
    height, count = steady_world.ledger.height, steady_world.ledger.transaction_count
    (outcome,) = steady_world.ledger.submit([make(steady_world)])
    assert (outcome.code, outcome.status, outcome.height) == (code, "rejected", None)
    assert (steady_world.ledger.height, steady_world.ledger.transaction_count) == (height, count)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_transaction_stands_with_its_code(steady_world: World, name: str) -> None:
    make, code = REFUSED[name]
    (outcome,) = steady_world.ledger.submit([make(steady_world)])
    assert (outcome.code, outcome.status, outcome.height) == (code, "refused", steady_world.ledger.height)
    assert steady_world.ledger.get(outcome.txid).code == code


def test_the_edges_of_a_window_are_inside(world: World) -> None:  # SPEC-TX-9
    edges = [
        payload(world, expires_ms=world.clock() + VALIDITY_WINDOW_MS_MAX),
        payload(
            world,
            issued_ms=world.clock() + CLOCK_SKEW_MS_MAX,
            expires_ms=world.clock() + CLOCK_SKEW_MS_MAX + 1,
        ),
    ]
    for fields in edges:
        assert world.ledger.submit([signed(world.patient, fields)])[0].code == UNKNOWN_RECORD


def test_bad_ones_among_good_ones(world: World) -> None:  # SPEC-ADM-1, SPEC-TX-7
    expected: list[Code] = []
    batch: list[bytes] = []
    blobs: list[bytes] = []
    for make, code in itertools.chain(REJECTED.values(), REFUSED.values()):
        sealed = world.patient.put_record("vitals", VITALS)
        blobs.append(sealed.blob)
        batch += [make(world), sealed.transaction.encoded]
        expected += [code, Code.OK]
    count = world.ledger.transaction_count
    outcomes = world.ledger.submit(batch, blobs)
    assert [outcome.code for outcome in outcomes] == expected
    entered = [outcome for outcome in outcomes if outcome.height is not None]
    assert [outcome.index for outcome in entered] == list(range(len(entered)))
    assert {outcome.height for outcome in entered} == {world.ledger.height}
    assert len(entered) == len(batch) - len(REJECTED) == world.ledger.transaction_count - count
    assert world.ledger.verify().problems == []
    again = world.ledger.submit(batch, blobs)
    assert [(o.code, o.height, o.index, o.txid) for o in again] == [
        (o.code, o.height, o.index, o.txid) for o in outcomes
    ]
    assert all(outcome.duplicate == (outcome.height is not None) for outcome in again)


def test_the_same_transaction_enters_once(world: World) -> None:  # SPEC-ADM-3
    first, second = world.patient.erase_record(bytes(16)), world.patient.open_folders("more")
    outcomes = world.ledger.submit([first, second, first, second, first])
    height = world.ledger.height
    assert [(o.code, o.height, o.index, o.duplicate) for o in outcomes] == [
        (UNKNOWN_RECORD, height, 0, False),
        (Code.OK, height, 1, False),
        (UNKNOWN_RECORD, height, 0, True),
        (Code.OK, height, 1, True),
        (UNKNOWN_RECORD, height, 0, True),
    ]
    for reopen in (False, True):
        ledger = world.reopen() if reopen else world.ledger
        again = ledger.submit([second, first])
        assert [(o.code, o.height, o.index, o.duplicate) for o in again] == [
            (Code.OK, height, 1, True),
            (UNKNOWN_RECORD, height, 0, True),
        ]
        assert ledger.height == height


def test_the_first_valid_signature_of_a_txid_wins(world: World) -> None:  # SPEC-ADM-3
    transaction = world.patient.open_folders("more")
    forged = flipped_signature(transaction.encoded)
    outcomes = world.ledger.submit([forged, transaction, forged])
    assert [outcome.code for outcome in outcomes] == [Code.BAD_SIGNATURE, Code.OK, Code.BAD_SIGNATURE]
    assert world.ledger.get(transaction.txid).encoded == transaction.encoded


def test_a_transaction_that_expires_on_its_way_is_rejected(world: World) -> None:  # SPEC-BLK-7
    # Block time never stands still: this block's is one millisecond past the clock.
    world.submit(world.patient.open_folders("more"))
    late = signed(world.patient, payload(world, issued_ms=world.clock() - 10, expires_ms=world.clock()))
    (outcome,) = world.ledger.submit([late])
    assert (outcome.code, outcome.height) == (Code.EXPIRED, None)


def test_a_batch_over_the_limits_is_refused_whole(world: World) -> None:  # SPEC-ADM-4
    transaction = world.patient.open_folders("more")
    filler = bytes(TRANSACTION_BYTES_MAX)
    for batch in (
        [transaction.encoded, *[b""] * BATCH_TRANSACTIONS_MAX],
        [transaction.encoded, *[filler] * (BATCH_BYTES_MAX // len(filler))],
    ):
        with pytest.raises(InputError) as error:
            world.ledger.submit(batch)
        assert error.value.code == Code.OVERSIZED
    with pytest.raises(FastLedgerError):
        world.ledger.get(transaction.txid)
    assert world.ledger.submit([]) == []
    assert world.ledger.submit([transaction])[0].ok


# Privacy of what is said about it.


def said(error: BaseException) -> str:
    """All that a log would hold of an error."""
    return "".join([str(error), repr(error), repr(error.args), *traceback.format_exception(error)])


def errors_about(world: World, encoded: bytes) -> Iterator[FastLedgerError]:
    attempts: list[Callable[[], object]] = [
        lambda: Transaction.decode(encoded),
        lambda: Transaction.decode(encoded).body,
        lambda: world.ledger.submit([encoded])[0].raise_for_status(),
        lambda: world.ledger.read(encoded),
    ]
    for attempt in attempts:
        try:
            attempt()
        except FastLedgerError as error:
            yield error


@pytest.mark.parametrize("name", [*REJECTED, *REFUSED])
def test_errors_hold_no_payload(steady_world: World, name: str) -> None:  # SPEC-PRIV-2
    make, _ = (REJECTED | REFUSED)[name]
    errors = list(errors_about(steady_world, make(steady_world)))
    assert errors
    for error in errors:
        assert isinstance(error.code, Code)
        assert not isinstance(error, LedgerError)
        assert SECRET not in said(error)
        assert SECRET_BYTES.hex() not in said(error)


def test_envelopes_that_do_not_open_are_not_quoted(world: World) -> None:  # SPEC-PRIV-2
    sealed = world.put(content=SECRET_BYTES)
    for blob in (SECRET_BYTES, sealed.blob[:-1], sealed.blob + SECRET_BYTES, b"\0" + sealed.blob):
        with pytest.raises(FastLedgerError) as error:
            world.patient.open_record(blob, folder="vitals", record=sealed.record)
        assert SECRET not in said(error.value)


# Properties.


SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

CBOR_VALUES = st.recursive(
    st.one_of(
        st.integers(-(2**63), 2**64 - 1),
        st.binary(max_size=40),
        st.text(max_size=20),
        st.booleans(),
        st.none(),
        st.floats(),
        st.builds(cbor2.CBORTag, st.integers(0, 300), st.text(max_size=5)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


def check_outcomes(outcomes: list[Outcome], count: int) -> None:
    assert len(outcomes) == count
    for outcome in outcomes:
        assert isinstance(outcome.code, Code)
        assert len(outcome.txid) == 32
        assert (outcome.height is None) == (100 <= outcome.code < 200)


@SHARED
@given(data=st.data())
def test_any_bytes_get_an_outcome(shared_world: World, data: st.DataObject) -> None:  # SPEC-ADM-1
    whole = good(shared_world)
    mutated = st.builds(patched, st.just(whole), st.integers(0, len(whole) - 1), st.integers(0, 255))
    cut = st.builds(lambda start, end: whole[start:end], st.integers(0, 9), st.integers(0, len(whole)))
    batch = data.draw(st.lists(st.binary(max_size=300) | mutated | cut, max_size=6))
    check_outcomes(shared_world.ledger.submit([*batch, whole]), len(batch) + 1)


@SHARED
@given(
    kind=st.sampled_from([*BODIES, "no.such.kind"]),
    body=CBOR_VALUES,
    times=st.tuples(*[st.integers(0, 2**64 - 1)] * 2),
)
def test_any_signed_cbor_gets_an_outcome(
    shared_world: World, kind: str, body: Any, times: tuple[int, int]
) -> None:  # SPEC-CBOR-2, SPEC-BODY-1
    fields = payload(shared_world, kind=kind, body=body)
    late = payload(shared_world, kind=kind, body=body, issued_ms=times[0], expires_ms=times[1])
    batch = [signed(shared_world.patient, fields), signed(shared_world.patient, late)]
    check_outcomes(shared_world.ledger.submit(batch), 2)


def body_strategy(world: World) -> st.SearchStrategy[Body]:
    """Any body of any kind, over ids that mean something and ids that mean nothing."""
    ids = st.sampled_from(
        [wallet.identity for wallet in world.wallets] + list(world.patient.labels.values())
    ) | st.binary(min_size=16, max_size=16)
    numbers = st.integers(0, 3) | st.just(2**32 - 1)
    lengths = st.integers(1, 3)
    times = st.sampled_from([0, world.clock() - 1, world.clock() + 10_000, 2**53 - 1])
    wraps = st.lists(st.binary(min_size=40, max_size=40), min_size=1, max_size=3)
    fields: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(("subject", "folder", "record", "consent", "grantee"), ids),
        **dict.fromkeys(("epoch", "version", "reason"), numbers),
        "role": st.sampled_from(Role),
        "purpose": st.sampled_from(Purpose),
        "purposes": st.lists(st.sampled_from(Purpose), min_size=1, max_size=3),
        "rights": st.sampled_from([int(Right.READ), int(Right.WRITE), 3]),
        "kem": st.sampled_from([world.patient.kem_public, world.clinic.kem_public]),
        "key": st.sampled_from([wallet.public_key for wallet in world.wallets] + [bytes(33)]),
        "proof": st.binary(min_size=64, max_size=64),
        "until_ms": times,
        "keys": wraps,
        "wrap": st.just(bytes(80)),
        "size": lengths,
        "digest": st.sampled_from([bytes(32), b"\1" * 32]),
        "tokens": st.lists(st.just(bytes(16)), max_size=2),
        "rule_set": st.integers(1, 3),
        "height": st.integers(0, 100) | st.just(2**53 - 1),
        "release": st.sampled_from(["", "1.2.0"]),
    }

    def of(body: type[Body]) -> st.SearchStrategy[Body]:
        own = {name: fields[name] for name in body.__struct_fields__ if name != "folders"}
        if "folders" in body.__struct_fields__:
            opening = body is BODIES["folder.open"]
            own["folders"] = st.lists(ids if opening else st.tuples(ids, numbers), min_size=1, max_size=3)
        return st.builds(body, **own)

    return st.one_of([of(body) for body in BODIES.values()])


@SHARED
@given(data=st.data())
def test_any_state_and_kind_give_a_code(shared_world: World, data: st.DataObject) -> None:  # SPEC-STATE-4
    stranger = new_wallet(shared_world.clock).join(shared_world.ledger.chain_id)
    # The regulator could revoke everyone, which would leave little to try.
    signers = st.sampled_from([shared_world.hospital, shared_world.doctor, shared_world.patient, stranger])
    steps = data.draw(st.lists(st.tuples(signers, body_strategy(shared_world)), min_size=1, max_size=6))
    outcomes = shared_world.ledger.submit([signer.sign(body) for signer, body in steps])
    check_outcomes(outcomes, len(steps))
    assert all(outcome.code in (Code.OK, Code.BLOB_MISSING) or outcome.code >= 200 for outcome in outcomes)
    probe = shared_world.regulator.sign(RecordErase(reason=0, record=bytes(16)))
    assert shared_world.ledger.submit([probe])[0].code == UNKNOWN_RECORD


def test_a_ledger_opens_nothing_but_a_ledger(tmp_path: Path) -> None:
    with pytest.raises(FastLedgerError) as error:
        Ledger.open(tmp_path / "nowhere")
    assert error.value.code == Code.NOT_FOUND
    made = make_world(tmp_path / "ledger", settled=False)
    made.close()
    genesis = made.path / "genesis.cbor"
    whole = genesis.read_bytes()
    for damaged in (b"", whole[:-1], SECRET_BYTES, whole[:20] + b"\xff" + whole[21:]):
        genesis.write_bytes(damaged)
        with pytest.raises(FastLedgerError) as error:
            Ledger.open(made.path)
        assert SECRET not in said(error.value)
    genesis.write_bytes(whole)
    Ledger.open(made.path).close()
