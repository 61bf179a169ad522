"""Writes ``model.json``: one genesis document, one transaction and the block that holds it, from fixed keys.

``python tests/vectors/make_model.py`` after a change of format; ``test_model.py`` verifies the file with hashlib and
cbor2 alone. The keys are worth nothing: they are the hashes of the words below.
"""

import json
from hashlib import sha256
from pathlib import Path

from fastledger import Authority, Genesis, Role, SigningKey, Transaction
from fastledger.crypto.merkle import leaf_hash
from fastledger.model.block import Block, Header, HeaderBody
from fastledger.model.receipt import make_receipt, make_seal, make_statement
from fastledger.subjects.identity import IdentityRegister

CREATED_MS = 1_800_000_000_000
TARGET = Path(__file__).with_name("model.json")


def key(word: str) -> SigningKey:
    """A key that everyone knows."""
    return SigningKey.from_bytes(sha256(f"fastledger test vector: {word}".encode()).digest())


def make() -> dict[str, str]:
    """Every vector by name, in hexadecimal."""
    proposer, regulator, signer = key("proposer"), key("regulator"), key("signer")
    kem = bytes.fromhex("0020") + sha256(b"kem").digest()  # X25519 (SPEC-KEM-1); any 32 bytes are a point
    genesis = Genesis(
        CREATED_MS,
        (proposer.public_key,),
        (Authority(regulator.public_key, kem),),
        salt=bytes(range(16)),
    ).checked()
    transaction = Transaction.sign(
        signer,
        chain_id=genesis.chain_id,
        body=IdentityRegister(role=Role.PATIENT, kem=kem),
        issued_ms=CREATED_MS + 1_000,
        expires_ms=CREATED_MS + 61_000,
        nonce=7,
    )
    first = genesis.block(state_root=bytes(32))
    results = b"\0\0"
    body = HeaderBody(
        height=1,
        time_ms=CREATED_MS + 2_500,
        tx_root=leaf_hash(transaction.txid),
        result_root=leaf_hash(transaction.txid + results),
        state_root=sha256(b"state").digest(),
        history_root=leaf_hash(first.block_id),
        proposer=proposer.public_key,
        seal_ref=sha256(b"").digest(),
    )
    header = Header(first.block_id, body.commitment, body.time_ms // 1000)
    seal = make_seal(proposer, genesis.chain_id, header, body, 1)
    lengths = len(transaction.encoded).to_bytes(4, "little")
    block = Block(header, body, seal, transaction.encoded, lengths, results)
    statement = make_statement(transaction.encoded, make_receipt(block, transaction.txid, 0))
    vectors = {
        "genesis": genesis.encoded,
        "chain_id": genesis.chain_id,
        "genesis_block_id": first.block_id,
        "signer_secret": signer.secret_bytes(),
        "transaction": transaction.encoded,
        "txid": transaction.txid,
        "header_body": body.encode(),
        "header": header.encode(),
        "block_id": header.block_id,
        "seal": seal,
        "block": block.encode(),
        "statement": statement,
    }
    return {name: value.hex() for name, value in vectors.items()}


if __name__ == "__main__":
    TARGET.write_text(json.dumps(make(), indent=1) + "\n")
