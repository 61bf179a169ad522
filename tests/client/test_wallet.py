"""Wallets: what they keep, what they show, and what they refuse."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from world import TERM, VITALS, Clock, World, new_wallet

from fastledger import Code, KemSuite, Keystore, Purpose, Right, Role, Wallet
from fastledger.crypto.hpke import KemPrivateKey
from fastledger.crypto.keystore import KdfParams
from fastledger.crypto.signing import SigningKey
from fastledger.errors import EnvelopeError, InputError, KeystoreError
from fastledger.limits import FOLDERS_PER_CONSENT_MAX, TOKENS_PER_RECORD_MAX, VALIDITY_WINDOW_MS_MAX
from fastledger.model.codec import decode, encode
from fastledger.model.ids import identity_id
from fastledger.subjects.consent import ConsentGrant
from fastledger.subjects.folder import UNKNOWN_FOLDER, FolderOpen
from fastledger.subjects.identity import UNKNOWN_SIGNER
from fastledger.subjects.record import RecordPut
from fastledger.wallet.wallet import VALIDITY_MS, YEAR_MS

PASSWORD = "for this test alone"
CHAIN_ID = b"chain-id"
# The keystore has tests of its own; here its derivation need not cost anything.
CHEAP = {"kdf_params": KdfParams(memory_kib=8, iterations=1), "allow_weak_kdf": True}


def wallet_of(suite: KemSuite) -> Wallet:
    return Wallet.create(CHAIN_ID, suite=suite, clock_ms=Clock())


def kept(path: Path, wallet: Wallet, entry: str = "wallet") -> Wallet:
    """The wallet that comes back from a keystore on disk."""
    keystore = Keystore.create(path, PASSWORD, **CHEAP)
    wallet.save(keystore, entry)
    keystore.save()
    return Wallet.load(Keystore.open(path, PASSWORD), entry, clock_ms=Clock())


def secrets_of(wallet: Wallet) -> list[bytes]:
    keys = [key.key for key in wallet._folder_keys.values()]
    return [wallet._key.secret_bytes(), wallet._kem.to_bytes()[-32:], *keys]


# Keeping.


@pytest.mark.parametrize("suite", list(KemSuite))
def test_a_wallet_comes_back_from_its_keystore(tmp_path: Path, suite: KemSuite) -> None:
    wallet = wallet_of(suite)
    wallet.open_folders("vitals", "laboratory", "Gläser & Ähnliches")
    wallet.rotate_folder("vitals")
    again = kept(tmp_path / "keys", wallet)
    assert (again.identity, again.public_key, again.kem_public, again.chain_id) == (
        wallet.identity,
        wallet.public_key,
        wallet.kem_public,
        CHAIN_ID,
    )
    assert again.labels == wallet.labels
    assert again.folders == wallet.folders
    assert secrets_of(again) == secrets_of(wallet)
    assert again.folder_key("vitals").epoch == 2
    assert again.tokens("vitals", TERM) == wallet.tokens("vitals", TERM)
    sealed = wallet.put_record("laboratory", VITALS)
    assert again.open_record(sealed.blob, folder="laboratory", record=sealed.record) == VITALS


def test_a_wallet_of_no_chain_comes_back_as_one(tmp_path: Path) -> None:
    again = kept(tmp_path / "keys", new_wallet(Clock()))
    with pytest.raises(InputError) as error:
        again.register(Role.PATIENT)
    assert error.value.code == Code.WRONG_CHAIN
    assert again.join(CHAIN_ID).register(Role.PATIENT).chain_id == CHAIN_ID


def test_wallets_stand_beside_one_another(tmp_path: Path) -> None:
    keystore = Keystore.create(tmp_path / "keys", PASSWORD, **CHEAP)
    wallets = {name: wallet_of(KemSuite.X25519) for name in ("a", "b", "patient:7")}
    for name, wallet in wallets.items():
        wallet.save(keystore, name)
    keystore.save()
    opened = Keystore.open(tmp_path / "keys", PASSWORD)
    assert {name: Wallet.load(opened, name).identity for name in opened.names()} == {
        name: wallet.identity for name, wallet in wallets.items()
    }


def damaged_entries() -> dict[str, bytes]:
    keystore_value: dict[str, Any] = {}

    class Catcher:
        def put(self, _name: str, secret: bytes) -> None:
            keystore_value.update(decode(secret))

    wallet_of(KemSuite.X25519).save(Catcher())  # type: ignore[arg-type]
    changes: dict[str, Any] = {
        "short key": {"signing": bytes(31)},
        "zero key": {"signing": bytes(32)},
        "no kem key": {"kem": b"\x01"},
        "text for a key": {"signing": "secret"},
        "folders of numbers": {"folders": [1]},
        "a folder cut": {"folders": [bytes(9)]},
        "labels of one": {"labels": [[b"vitals"]]},
        "labels of text": {"labels": [["vitals", bytes(16)]]},
        "labels not UTF-8": {"labels": [[b"\xff", bytes(16)]]},
        "identity of text": {"identity": "patient 7"},
        "identity cut": {"identity": bytes(15)},
        "chain cut": {"chain": bytes(7)},
        "chain of text": {"chain": "chain-id"},
        "later format": {"version": 2},
    }
    entries = {name: encode(keystore_value | change) for name, change in changes.items()}
    for name in keystore_value:
        missing = {key: value for key, value in keystore_value.items() if key != name}
        entries[f"without {name}"] = encode(missing)
    return entries | {
        "a bare key": bytes(32),
        "a list": encode([1]),
        "a number": encode(1),
        "one byte": b"\0",
    }


@pytest.mark.parametrize(("name", "secret"), damaged_entries().items(), ids=damaged_entries().keys())
def test_what_is_no_wallet_is_refused(tmp_path: Path, name: str, secret: bytes) -> None:
    keystore = Keystore.create(tmp_path / "keys", PASSWORD, **CHEAP)
    keystore.put("entry", secret)
    with pytest.raises(KeystoreError) as error:
        Wallet.load(keystore, "entry")
    assert error.value.code == (Code.FORMAT_VERSION if name == "later format" else Code.BAD_KEYSTORE)
    with pytest.raises(KeystoreError) as error:
        Wallet.load(keystore, "another entry")
    assert error.value.code == Code.NOT_FOUND


# Threads.


def test_records_are_sealed_and_opened_on_many_threads_at_once() -> None:
    wallet = wallet_of(KemSuite.X25519)
    wallet.open_folders("vitals")

    def work(number: int) -> bool:
        content = b"%d" % number * 1000
        sealed = wallet.put_record("vitals", content, (f"code:x|{number}",))
        opened = wallet.open_record(sealed.blob, folder="vitals", record=sealed.record)
        body = sealed.transaction.body
        return opened == content and body.tokens == wallet.tokens("vitals", f"code:x|{number}")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


# Showing.


def test_a_wallet_shows_no_secret(tmp_path: Path) -> None:  # SPEC-PRIV-2
    wallet = wallet_of(KemSuite.MLKEM768_X25519)
    wallet.open_folders("vitals")
    shown = repr(wallet) + str(wallet) + f"{wallet}" + repr([wallet]) + repr(wallet.folder_key("vitals"))
    shown += repr(wallet._key) + repr(wallet._kem) + repr(wallet.put_record("vitals", VITALS))
    assert wallet.identity.hex()[:8] in shown
    for secret in secrets_of(wallet):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    assert "heart rate" not in shown


def test_a_saved_keystore_shows_no_secret_and_no_label(tmp_path: Path) -> None:
    wallet = wallet_of(KemSuite.X25519)
    wallet.open_folders("oncology-follow-up")
    kept(tmp_path / "keys", wallet, "patient:Jane-Roe")
    content = (tmp_path / "keys").read_bytes()
    for text in (b"oncology", b"Jane", wallet.identity, *secrets_of(wallet)):
        assert text not in content


def test_transactions_carry_no_label_and_no_term() -> None:  # SPEC-PRIV-1
    wallet = wallet_of(KemSuite.X25519)
    opening = wallet.open_folders("oncology")
    sealed = wallet.put_record("oncology", VITALS, (TERM, "month:2026-01"))
    grant = wallet.grant(bytes(16), wallet.kem_public, ["oncology"], purposes=[Purpose.TREATMENT])
    for encoded in (opening.encoded, sealed.transaction.encoded, grant.encoded, sealed.blob):
        for text in (b"oncology", b"loinc", b"8867", b"2026-01", b"heart"):
            assert text not in encoded


def test_keys_do_not_travel_by_accident() -> None:
    """Libsecp256k1's key objects refuse pickling, and with them wallets do."""
    with pytest.raises(TypeError):
        pickle.dumps(wallet_of(KemSuite.X25519))


# Signing.


def test_what_it_signs_is_for_now_and_for_its_chain() -> None:
    clock = Clock()
    wallet = new_wallet(clock)
    for sign in (
        lambda: wallet.register(Role.PATIENT),
        lambda: wallet.open_folders("vitals"),
        lambda: wallet.chain_id,
    ):
        with pytest.raises(InputError) as error:
            sign()
        assert error.value.code == Code.WRONG_CHAIN
    wallet.join(CHAIN_ID)
    transaction = wallet.register(Role.PATIENT)
    assert (transaction.chain_id, transaction.signer) == (CHAIN_ID, wallet.public_key)
    assert (transaction.issued_ms, transaction.expires_ms) == (clock(), clock() + VALIDITY_MS)
    assert wallet.register(Role.PATIENT).txid != transaction.txid
    assert wallet.identity == identity_id(wallet.public_key)


@pytest.mark.parametrize("validity_ms", [0, -1, VALIDITY_WINDOW_MS_MAX + 1])
def test_a_window_has_bounds(validity_ms: int) -> None:
    with pytest.raises(InputError) as error:
        Wallet(SigningKey.generate(), KemPrivateKey.generate(KemSuite.X25519), validity_ms=validity_ms)
    assert error.value.code == Code.WINDOW_TOO_LONG


def test_defaults_end_after_a_year() -> None:
    wallet = wallet_of(KemSuite.X25519)
    wallet.open_folders("vitals")
    grant = wallet.grant(bytes(16), wallet.kem_public, ["vitals"], purposes=[Purpose.TREATMENT])
    assert isinstance(grant.body, ConsentGrant)
    assert grant.body.until_ms == grant.issued_ms + YEAR_MS
    assert grant.body.rights == Right.READ


# Folders and tokens.


def test_labels_are_the_wallets_own() -> None:
    wallet = wallet_of(KemSuite.X25519)
    opening = wallet.open_folders("vitals", "laboratory")
    assert isinstance(opening.body, FolderOpen)
    assert list(wallet.labels) == ["vitals", "laboratory"]
    assert opening.body.folders == list(wallet.labels.values()) == wallet.folders
    assert wallet.folder("vitals") == wallet.labels["vitals"]
    assert wallet.folder(bytes(16)) == bytes(16)
    with pytest.raises(InputError) as error:
        wallet.folder("imaging")
    assert error.value.code == UNKNOWN_FOLDER
    for folder, epoch in ((bytes(16), None), ("vitals", 2), ("vitals", 0)):
        with pytest.raises(EnvelopeError) as missing:
            wallet.folder_key(folder, epoch)
        assert missing.value.code == Code.UNKNOWN_FOLDER_KEY
    assert wallet.holds_key(wallet.labels["vitals"])
    assert not wallet.holds_key(bytes(16))


def test_tokens_follow_every_epoch_newest_first(world: World) -> None:
    """What was written under an older key is found by its older token."""
    patient = world.patient
    records = [world.put().record]
    for _ in range(3):
        world.submit(patient.rotate_folder("vitals"))
        records.append(world.put().record)
    tokens = patient.tokens("vitals", TERM)
    assert len(set(tokens)) == 4
    found = []
    for token in tokens:
        (entry,) = world.ledger.query(token=token)
        assert isinstance(entry.transaction.body, RecordPut)
        found.append((entry.transaction.body.epoch, entry.transaction.body.record))
    assert found == [(4 - age, record) for age, record in enumerate(reversed(records))]
    assert patient.tokens("laboratory", TERM) != tokens[:1]
    assert patient.tokens(bytes(16), TERM) == []


def test_a_grantees_tokens_are_those_of_the_epochs_that_it_got(world: World) -> None:  # SPEC-CONS-5
    world.submit(world.patient.rotate_folder("vitals"))
    grant = world.grant(world.clinic)
    assert (
        world.clinic.tokens(world.patient.labels["vitals"], TERM) == world.patient.tokens("vitals", TERM)[:1]
    )
    world.submit(world.patient.rotate_folder("vitals"))
    assert isinstance(grant.body, ConsentGrant)
    rekey = world.patient.rekey(
        grant.body.consent, world.clinic.identity, world.clinic.kem_public, ["vitals"]
    )
    world.submit(rekey)
    assert world.accept(world.clinic, rekey) == [world.patient.labels["vitals"]]
    assert (
        world.clinic.tokens(world.patient.labels["vitals"], TERM) == world.patient.tokens("vitals", TERM)[:2]
    )


def test_terms_are_bounded() -> None:
    wallet = wallet_of(KemSuite.X25519)
    wallet.open_folders("vitals")
    terms = [f"code:x|{number}" for number in range(TOKENS_PER_RECORD_MAX + 1)]
    body = wallet.put_record("vitals", b"", terms[:-1]).transaction.body
    assert isinstance(body, RecordPut)
    assert len(body.tokens) == TOKENS_PER_RECORD_MAX
    with pytest.raises(InputError) as error:
        wallet.put_record("vitals", b"", terms)
    assert error.value.code == Code.OVERSIZED
    with pytest.raises(InputError):
        wallet.open_folders(*map(str, range(FOLDERS_PER_CONSENT_MAX + 1)))


# Others' wallets.


@pytest.mark.parametrize("suite", list(KemSuite))
def test_keys_reach_a_grantee_of_either_suite(
    world: World, suite: KemSuite
) -> None:  # SPEC-CONS-1, SPEC-KEM-1
    sealed = world.put()
    reader = Wallet.create(world.ledger.chain_id, suite=suite, clock_ms=world.clock)
    world.submit(reader.register(Role.PATIENT))
    world.grant(reader)
    blob = world.ledger.read(reader.access(sealed.record, Purpose.TREATMENT))
    assert reader.open_record(blob, folder=sealed.folder, record=sealed.record) == VITALS


def test_a_foreign_wallet_opens_nothing(world: World) -> None:  # SPEC-CONS-1
    sealed = world.put()
    grant = world.grant(world.clinic)
    opening = world.patient.open_folders("imaging")
    stranger = new_wallet(world.clock).join(world.ledger.chain_id)
    rotation = world.patient.rotate_folder("vitals")
    world.submit(opening, rotation)
    for transaction in (grant, opening, rotation):
        with pytest.raises(EnvelopeError):
            world.accept(stranger, transaction)
    with pytest.raises(EnvelopeError) as error:
        world.accept(stranger, sealed.transaction)
    assert error.value.code == Code.BAD_BODY
    assert stranger.folders == []
    for folder in (sealed.folder, world.patient.labels["laboratory"]):
        with pytest.raises(EnvelopeError):
            stranger.open_record(sealed.blob, folder=folder, record=sealed.record)


def test_an_envelope_opens_only_as_what_it_is(world: World) -> None:  # SPEC-ENV-4
    sealed = world.put()
    patient = world.patient
    assert patient.open_record(sealed.blob, folder="vitals", record=sealed.record) == VITALS
    for changes in ({"record": bytes(16)}, {"version": 2}, {"folder": "laboratory"}):
        with pytest.raises(EnvelopeError):
            patient.open_record(sealed.blob, **({"folder": "vitals", "record": sealed.record} | changes))
    patient.join(bytes(8))
    with pytest.raises(EnvelopeError):
        patient.open_record(sealed.blob, folder="vitals", record=sealed.record)


def test_an_organisations_wallet_accepts_for_its_practitioner(world: World) -> None:  # SPEC-CONS-2
    """Who holds the KEM key that a grant was wrapped to opens it, naming whom it was granted to."""
    grant = world.patient.grant(
        world.doctor.identity, world.hospital.kem_public, ["vitals"], purposes=[Purpose.TREATMENT]
    )
    world.submit(grant)
    with pytest.raises(EnvelopeError):
        world.accept(world.hospital, grant)
    assert world.accept(world.hospital, grant, holder=world.doctor.identity) == [world.patient.labels["vitals"]]


def test_a_successor_takes_the_identity_over(world: World, tmp_path: Path) -> None:  # SPEC-ID-7
    sealed = world.put()
    successor = new_wallet(world.clock).join(world.ledger.chain_id)
    world.submit(world.patient.rotate_to(successor))
    successor.take_over(world.patient)
    assert successor.identity == world.patient.identity
    again = kept(tmp_path / "keys", successor)
    assert again.identity == world.patient.identity != identity_id(again.public_key)
    again._clock_ms = world.clock
    blob = world.ledger.read(again.access(sealed.record, Purpose.PATIENT_REQUEST))
    assert again.open_record(blob, folder="vitals", record=sealed.record) == VITALS
    refused = world.ledger.submit([world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)])[0]
    assert refused.code == UNKNOWN_SIGNER
