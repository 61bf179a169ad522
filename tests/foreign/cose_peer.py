"""What somebody else's COSE library makes of our bytes; run by the interpreter that has that library.

Reads a JSON list of jobs from standard input and writes a JSON list of answers: ``{"ok": true, ...}`` or
``{"ok": false, "error": class}``. Bytes travel as hexadecimal. Nothing of this project is imported.
"""

import json
import sys
from hashlib import sha256

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cwt import COSE, COSEKey

# Labels of RFC 9052, RFC 9942 and RFC 9943, and the algorithms of RFC 8812 and RFC 9053.
ALG, KID = 1, 4
RECEIPTS, VDS, VDP, INCLUSION = 394, 395, 396, -1
ES256K, A256GCM, A256KW, RFC9162_SHA256 = -47, 3, -5, 1


def ec_key(compressed, secret=None):
    """A COSE_Key (EC2, secp256k1) of a 33-byte public key, with the private scalar where there is one."""
    numbers = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), compressed).public_numbers()
    fields = {1: 2, 2: compressed, 3: ES256K, -1: 8}
    fields |= {-2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}
    if secret is not None:
        fields[-4] = secret
    return COSEKey.new(fields)


def parts(encoded):
    """The four parts of a COSE_Sign1 with its protected header decoded."""
    tag = cbor2.loads(encoded)
    if tag.tag != 18:
        raise ValueError("not a COSE_Sign1")
    protected, unprotected, payload, signature = tag.value
    return cbor2.loads(protected), unprotected, payload, signature


def root_of(leaf, index, size, path):
    """The root that an inclusion path leads to (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < size:
        raise ValueError("no such leaf")
    fn, sn, node = index, size - 1, sha256(b"\x00" + leaf).digest()
    for sibling in path:
        if sn == 0:
            raise ValueError("the path is too long")
        if fn & 1 or fn == sn:
            node = sha256(b"\x01" + sibling + node).digest()
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            node = sha256(b"\x01" + node + sibling).digest()
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise ValueError("the path is too short")
    return node


def verify_transaction(transaction):
    """Verifies a COSE_Sign1 with the key that its own protected header names."""
    protected, _, _, _ = parts(transaction)
    payload = COSE.new().decode(transaction, keys=[ec_key(protected[KID])])
    return {"alg": protected[ALG], "kind": cbor2.loads(payload)[1]}


def verify_receipt(statement, proposer):
    """Verifies the receipt in a transparent statement, its payload rebuilt from the statement's own bytes."""
    tag = cbor2.loads(statement)
    protected, unprotected, payload, _ = tag.value
    (receipt,) = unprotected[RECEIPTS]
    header, proofs, detached, _ = parts(receipt)
    if detached is not None or header[VDS] != RFC9162_SHA256:
        raise ValueError("not a receipt with a detached payload")
    (proof,) = proofs[VDP][INCLUSION]
    size, index, path = cbor2.loads(proof)
    txid = sha256(cbor2.dumps(["Signature1", protected, b"", payload], canonical=True)).digest()
    root = root_of(txid, index, size, path)
    COSE.new().decode(receipt, keys=[ec_key(proposer)], detached_payload=root)
    return {"txid": txid.hex(), "tx_root": root.hex(), "tree_size": size, "leaf_index": index}


def open_envelope(envelope, wrap_key, external_aad):
    """Decrypts a COSE_Encrypt (A256GCM) whose key is wrapped by A256KW."""
    _, _, _, recipients = cbor2.loads(envelope).value
    key = COSEKey.new({1: 4, 2: recipients[0][1][KID], 3: A256KW, -1: wrap_key})
    content = COSE.new(verify_kid=True).decode(envelope, keys=[key], external_aad=external_aad)
    return {"content": content.hex()}


def sign_transaction(secret, public, payload):
    """A COSE_Sign1 built and signed here, its s high or low as it comes."""
    key = ec_key(public, secret)
    encoded = COSE.new().encode_and_sign(payload, key, protected={ALG: ES256K, KID: public}, unprotected={})
    return {"encoded": encoded.hex()}


JOBS = {job.__name__: job for job in (verify_transaction, verify_receipt, open_envelope, sign_transaction)}


def main():
    """Answers every job; a job that fails does not end the others."""
    answers = []
    for job in json.load(sys.stdin):
        name = job.pop("job")
        try:
            found = JOBS[name](**{field: bytes.fromhex(value) for field, value in job.items()})
            answers.append({"ok": True, **found})
        except Exception as error:
            answers.append({"ok": False, "error": type(error).__name__})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
