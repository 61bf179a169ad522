"""Our bytes before other people's eyes: a COSE library that we did not write, and the published examples."""

import json
import os
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import cbor2
import pytest
from conftest import PROJECT_ROOT
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from world import VITALS, World

from fastledger import Code, Purpose, Role, SigningKey, Transaction, Wallet, verify_statement
from fastledger.crypto.hpke import KemPrivateKey, KemSuite
from fastledger.crypto.signing import ORDER, normalize_low_s
from fastledger.errors import ReceiptError, TransactionError
from fastledger.model.body import body_map
from fastledger.model.codec import encode
from fastledger.model.receipt import (
    KEY_LABEL,
    PROOFS_LABEL,
    RECEIPTS_LABEL,
    RFC9162_SHA256,
    TREE_LABEL,
    _parse_cose_sign1,
    _parse_proof,
)
from fastledger.model.transaction import signing_input
from fastledger.subjects.identity import IdentityRegister

PEER = Path(__file__).with_name("cose_peer.py")
PEER_PYTHON = Path(os.environ.get("FASTLEDGER_PEER_PYTHON", PROJECT_ROOT / ".venv-peers" / "bin" / "python"))
PEERS_REQUIRED = os.environ.get("FASTLEDGER_REQUIRE_PEERS") == "1"
SIGNATURE_BYTES = 64

Job = dict[str, Any]


@pytest.fixture(scope="session")
def peer() -> "Peer":
    """The other library's interpreter; a test that asks for it is skipped, loudly, where it is absent."""
    if not PEER_PYTHON.is_file():
        message = f"no peer library at {PEER_PYTHON}: make a venv of tests/foreign/requirements.txt"
        if PEERS_REQUIRED:
            pytest.fail(message)
        pytest.skip(message)
    return Peer()


class Peer:
    """Runs jobs of ``cose_peer.py`` in one process."""

    def ask(self, *jobs: Job) -> list[Job]:
        text = json.dumps(
            [
                {name: value.hex() if isinstance(value, bytes) else value for name, value in job.items()}
                for job in jobs
            ]
        )
        done = subprocess.run(
            [str(PEER_PYTHON), "-I", str(PEER)], input=text, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr[-2000:]
        answers: list[Job] = json.loads(done.stdout)
        assert len(answers) == len(jobs)
        return answers


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def external_aad(world: World, record: bytes, folder: bytes, version: int = 1, epoch: int = 1) -> bytes:
    """As the envelope's documentation gives it, encoded by another encoder."""
    chain_id = world.ledger.chain_id
    return cbor2.dumps(["fastledger/record/v1", chain_id, record, version, folder, epoch], canonical=True)


# The peer's library.


def test_peer_verifies_every_kind_of_transaction(world: World, peer: Peer) -> None:  # SPEC-TX-1
    sealed = world.put()
    world.grant(world.clinic)
    world.ledger.read(world.clinic.access(sealed.record, Purpose.TREATMENT))
    entries = list(world.ledger.query())
    answers = peer.ask(*({"job": "verify_transaction", "transaction": entry.encoded} for entry in entries))
    assert [answer.get("kind") for answer in answers] == [entry.transaction.kind for entry in entries]
    assert {answer["alg"] for answer in answers} == {-47}


def test_peer_refuses_damaged_transactions(world: World, peer: Peer) -> None:  # SPEC-TX-1
    encoded = world.put().transaction.encoded
    places = [8, 12, 40, 60, 100, len(encoded) // 2, len(encoded) - 65, len(encoded) - 40, len(encoded) - 1]
    jobs = [{"job": "verify_transaction", "transaction": flipped(encoded, at)} for at in places]
    answers = peer.ask(*jobs, {"job": "verify_transaction", "transaction": encoded})
    assert [answer["ok"] for answer in answers] == [False] * len(places) + [True]


def test_peer_verifies_receipts(world: World, peer: Peer) -> None:  # SPEC-RCP-1, SPEC-RCP-2
    batch = [world.hospital.endorse(world.doctor.identity, Role.PRACTITIONER) for _ in range(11)]
    world.submit(*batch)
    proposer = world.ledger.genesis.proposers[0]
    height = world.ledger.height
    statements = [world.ledger.prove(transaction.txid) for transaction in batch]
    jobs: list[Job] = [
        {"job": "verify_receipt", "statement": item, "proposer": proposer} for item in statements
    ]
    answers = peer.ask(*jobs)
    assert [answer.get("txid") for answer in answers] == [item.txid.hex() for item in batch]
    assert {answer["tx_root"] for answer in answers} == {world.ledger.block(height).body.tx_root.hex()}
    assert [answer["leaf_index"] for answer in answers] == list(range(11))
    assert {answer["tree_size"] for answer in answers} == {11}


def test_peer_refuses_damaged_receipts(world: World, peer: Peer) -> None:  # SPEC-RCP-5
    sealed = world.put()
    statement = world.ledger.prove(sealed.transaction.txid)
    proposer = world.ledger.genesis.proposers[0]
    # The signature of the receipt, its protected header, and the transaction's payload.
    tag = cbor2.loads(statement)
    (receipt,) = tag.value[1][RECEIPTS_LABEL]
    at = statement.index(receipt)
    places = [at + len(receipt) - 1, at + 20, statement.index(b"record.put")]
    jobs: list[Job] = [
        {"job": "verify_receipt", "statement": flipped(statement, place), "proposer": proposer}
        for place in places
    ]
    stranger: Job = {
        "job": "verify_receipt",
        "statement": statement,
        "proposer": SigningKey.generate().public_key,
    }
    answers = peer.ask(*jobs, stranger)
    assert [answer["ok"] for answer in answers] == [False] * (len(places) + 1)


@pytest.mark.parametrize("size", [0, 1, 23, 255, 256, 70_000, 1024 * 1024])
def test_peer_decrypts_record_envelopes(world: World, peer: Peer, size: int) -> None:  # SPEC-ENV-1
    content = (VITALS * (size // len(VITALS) + 1))[:size]
    sealed = world.patient.put_record("vitals", content)
    key = world.patient.folder_key("vitals")
    job: Job = {
        "job": "open_envelope",
        "envelope": sealed.blob,
        "wrap_key": key.wrap_key,
        "external_aad": external_aad(world, sealed.record, sealed.folder),
    }
    wrong: list[Job] = [
        job | {"wrap_key": flipped(key.wrap_key, 0)},
        job | {"external_aad": external_aad(world, sealed.record, sealed.folder, version=2)},
        job | {"external_aad": external_aad(world, bytes(16), sealed.folder)},
        job | {"envelope": flipped(sealed.blob, 30)},
    ]
    opened, *refused = peer.ask(job, *wrong)
    assert opened == {"ok": True, "content": content.hex()}
    assert [answer["ok"] for answer in refused] == [False] * len(wrong)


def test_what_a_peer_signs_enters_the_ledger(world: World, peer: Peer) -> None:  # SPEC-TX-1, SPEC-SIG-4
    """Its s is high or low as it comes: the border's helper makes it canonical, and the id stays what it was."""
    now_ms = world.clock()
    head = [world.ledger.chain_id, "identity.register", now_ms, now_ms + 60_000]
    jobs: list[Job] = []
    for nonce in range(8):
        key = SigningKey.generate()
        body = IdentityRegister(role=Role.PATIENT, kem=KemPrivateKey.generate(KemSuite.X25519).public_bytes)
        payload = cbor2.dumps([*head, nonce, body_map(body)], canonical=True)
        job = {"job": "sign_transaction", "secret": key.secret_bytes(), "public": key.public_key}
        jobs.append(job | {"payload": payload})
    for answer, job in zip(peer.ask(*jobs), jobs, strict=True):
        encoded = bytes.fromhex(answer["encoded"])
        signature = normalize_low_s(encoded[-SIGNATURE_BYTES:])
        canonical = encoded[:-SIGNATURE_BYTES] + signature
        s = int.from_bytes(signature[32:], "big")
        high = canonical[:-32] + (ORDER - s).to_bytes(32, "big")
        assert encoded in (canonical, high)
        txid = sha256(signing_input(job["public"], job["payload"])).digest()
        refused, accepted = world.ledger.submit([high, canonical])
        assert (refused.txid, refused.status, refused.code) == (txid, "rejected", Code.BAD_SIGNATURE)
        assert (accepted.txid, accepted.status, accepted.code) == (txid, "durable", Code.OK)


# With nothing but `cryptography` and `cbor2`.


def ec_verify(public: bytes, signature: bytes, digest: bytes) -> None:
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public)
    r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:]))
    key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(hashes.SHA256())))


def sig_structure(protected: bytes, payload: bytes) -> bytes:
    return cbor2.dumps(["Signature1", protected, b"", payload], canonical=True)


def test_openssl_verifies_transactions(world: World) -> None:  # SPEC-TX-1, SPEC-TX-5
    for entry in world.ledger.query():
        tag = cbor2.loads(entry.encoded)
        protected, unprotected, payload, signature = tag.value
        header = cbor2.loads(protected)
        digest = sha256(sig_structure(protected, payload)).digest()
        assert tag.tag == 18
        assert header == {1: -47, 4: entry.transaction.signer}
        assert list(header) == [1, 4]
        assert unprotected == {}
        assert digest == entry.txid
        ec_verify(header[4], signature, digest)
        with pytest.raises(InvalidSignature):
            ec_verify(header[4], signature, sha256(digest).digest())


def test_openssl_verifies_seals(world: World) -> None:  # SPEC-RCP-1
    block = world.ledger.block(1)
    protected, unprotected, payload, signature = cbor2.loads(block.seal).value
    header = cbor2.loads(protected)
    assert (unprotected, payload) == ({}, None)
    assert header[-65537] == [world.ledger.chain_id, 1, block.block_id, block.count]
    assert header[TREE_LABEL] == RFC9162_SHA256
    ec_verify(header[KEY_LABEL], signature, sha256(sig_structure(protected, block.body.tx_root)).digest())


def test_openssl_decrypts_an_envelope(world: World) -> None:  # SPEC-ENV-1
    sealed = world.patient.put_record("vitals", VITALS)
    tag = cbor2.loads(sealed.blob)
    protected, unprotected, ciphertext, ((inner, recipient, wrapped),) = tag.value
    assert (tag.tag, cbor2.loads(protected), inner) == (96, {1: 3}, b"")
    assert recipient == {1: -5, 4: sealed.folder + (1).to_bytes(4, "big")}
    data_key = aes_key_unwrap(world.patient.folder_key("vitals").wrap_key, wrapped)
    context = external_aad(world, sealed.record, sealed.folder)
    structure = cbor2.dumps(["Encrypt", protected, context], canonical=True)
    assert AESGCM(data_key).decrypt(unprotected[5], ciphertext, structure) == VITALS


# Published examples.


@pytest.mark.data
def test_cose_sign1_examples_are_no_transactions(shared_data: Path) -> None:  # SPEC-TX-1
    files = sorted((shared_data / "cose" / "examples" / "sign1-tests").glob("*.json"))
    files += sorted((shared_data / "cose" / "examples" / "ecdsa-examples").glob("*.json"))
    assert len(files) >= 13
    for file in files:
        encoded = bytes.fromhex(json.loads(file.read_text())["output"]["cbor"])
        with pytest.raises(TransactionError) as error:
            Transaction.decode(encoded)
        assert error.value.code in (Code.MALFORMED, Code.BAD_HEADER, Code.NON_CANONICAL), file.name


@pytest.mark.data
def test_cose_sign1_examples_are_rejected_by_a_ledger(world: World, shared_data: Path) -> None:  # SPEC-ADM-1
    files = sorted((shared_data / "cose" / "examples" / "sign1-tests").glob("*.json"))
    batch = [bytes.fromhex(json.loads(file.read_text())["output"]["cbor"]) for file in files]
    good = world.hospital.endorse(world.doctor.identity, Role.PRACTITIONER)
    outcomes = world.ledger.submit([*batch, good.encoded])
    assert {outcome.status for outcome in outcomes[:-1]} == {"rejected"}
    assert outcomes[-1].ok


@pytest.mark.data
@pytest.mark.parametrize(("name", "proof_label"), [("inclusion", -1), ("consistency", -2)])
def test_receipt_examples_have_our_structure(shared_data: Path, name: str, proof_label: int) -> None:
    """Not our profile (ES256, other headers), hence refused, but the same labels at the same places (SPEC-RCP-2)."""
    encoded = (shared_data / "cose" / "receipts-draft" / "examples" / f"{name}-receipt.cbor").read_bytes()
    tag = cbor2.loads(encoded)
    protected, unprotected, payload, signature = tag.value
    header = cbor2.loads(protected)
    assert (tag.tag, payload, len(signature)) == (18, None, SIGNATURE_BYTES)
    assert header[TREE_LABEL] == RFC9162_SHA256
    assert header[KEY_LABEL] == b"test-key-1"
    (proof,) = unprotected[PROOFS_LABEL][proof_label]
    *sizes, path = cbor2.loads(proof)
    assert all(type(size) is int for size in sizes)
    assert {len(node) for node in path} == {32}
    statement = encode_statement(encoded)
    with pytest.raises(ReceiptError):
        verify_statement(statement, chain_id=bytes(8), proposers=[])


def encode_statement(receipt: bytes) -> bytes:
    """A good transaction with a foreign receipt."""
    wallet = Wallet.create(bytes(8), suite=KemSuite.X25519)
    protected, _, payload, signature = cbor2.loads(wallet.register(Role.PATIENT).encoded).value
    return b"\xd2" + encode([protected, {RECEIPTS_LABEL: [receipt]}, payload, signature])


@pytest.mark.data
def test_our_parser_reads_the_published_inclusion_receipt(shared_data: Path) -> None:  # SPEC-RCP-2
    file = shared_data / "cose" / "receipts-draft" / "examples" / "inclusion-receipt.cbor"
    _, unprotected, payload, signature = _parse_cose_sign1(file.read_bytes(), "receipt")
    tree_size, leaf_index, path = _parse_proof(unprotected[PROOFS_LABEL])
    assert (payload, len(signature)) == (None, SIGNATURE_BYTES)
    assert (tree_size, leaf_index, len(path)) == (5, 3, 3)
