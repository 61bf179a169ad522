"""Seals and receipts: COSE_Sign1 objects that bind a block, and every transaction in it, to its proposer.

The *seal* of a block is a COSE_Sign1 (ES256K) with the block's ``tx_root`` as detached payload and protected header
``{1: -47, 4: proposer, 395: 1, -65537: [chain_id, height, block_id, count]}``. One signature a block thus serves as
the seal and as the signature of every COSE Receipt (RFC 9942, RFC9162_SHA256) for that block: a receipt is the seal
with the inclusion proof in its unprotected header. Under the private label -65538 it also carries the header and the
result's proof, so that a reader learns offline *what became* of the transaction, not just that it is there
(SPEC-RCP-1..5). A *transparent statement* is the transaction with its receipt under label 394 (RFC 9943).
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from fastledger.crypto.merkle import inclusion_proof, leaf_hash, leaf_hashes, verify_inclusion
from fastledger.crypto.signing import SIGNATURE_BYTES, SigningKey, verify_batch, verify_one
from fastledger.errors import Code, FastLedgerError, InputError, ReceiptError
from fastledger.model.block import Block, Header, HeaderBody, SealedHeader, result_entries
from fastledger.model.codec import decode, encode
from fastledger.model.transaction import Transaction
from fastledger.reprs import BriefRepr

ALGORITHM_LABEL = 1
KEY_LABEL = 4
RECEIPTS_LABEL = 394
TREE_LABEL = 395
PROOFS_LABEL = 396
BLOCK_LABEL = -65537
OUTCOME_LABEL = -65538
INCLUSION_PROOFS = -1
ES256K = -47
RFC9162_SHA256 = 1
COSE_SIGN1_HEAD = b"\xd2"  # tag 18
STATEMENT_BYTES_MAX = 256 * 1024


@dataclass(frozen=True, repr=False)
class SealHeader(BriefRepr):
    """The protected header of a seal, which names the proposer, the chain and the block.

    ``count`` is the number of its transactions: a root alone would let the last leaf of an uneven tree pass for an
    earlier leaf of a smaller one.
    """

    proposer: bytes
    chain_id: bytes
    height: int
    block_id: bytes
    count: int

    def encode(self) -> bytes:
        """Returns the protected header map as deterministic CBOR."""
        return encode(
            {
                ALGORITHM_LABEL: ES256K,
                KEY_LABEL: self.proposer,
                TREE_LABEL: RFC9162_SHA256,
                BLOCK_LABEL: [self.chain_id, self.height, self.block_id, self.count],
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> "SealHeader":
        """Returns the header in ``data``; raises ``ReceiptError`` for bytes that :meth:`encode` would not write."""
        fields = _strict(data, "protected header")
        block = fields.get(BLOCK_LABEL) if isinstance(fields, dict) else None
        if not isinstance(block, list) or len(block) != 4 or {type(block[1]), type(block[3])} != {int}:
            raise ReceiptError("protected header is not that of a seal")
        ids = (fields.get(KEY_LABEL), block[0], block[2])
        if [len(item) if isinstance(item, bytes) else -1 for item in ids] != [33, 8, 32]:
            raise ReceiptError("protected header is not that of a seal")
        header = cls(ids[0], *block)
        if header.encode() != data:
            raise ReceiptError("protected header is not that of a seal")
        return header


def _seal_digest(protected: bytes, tx_root: bytes) -> bytes:
    """Returns the SHA-256 of the Sig_structure with ``tx_root`` as payload (RFC 9052 §4.4)."""
    return hashlib.sha256(encode(["Signature1", protected, b"", tx_root])).digest()


def _cose_sign1(
    protected: bytes, unprotected: dict[Any, Any], payload: bytes | None, signature: bytes
) -> bytes:
    return COSE_SIGN1_HEAD + encode([protected, unprotected, payload, signature])


def _strict(data: bytes, what: str) -> Any:
    """Returns the value of one deterministic CBOR item: what is not signed must not have two forms either."""
    try:
        return decode(data, what=what)
    except InputError as error:
        raise ReceiptError(error.args[0]) from None


def _parse_cose_sign1(data: bytes, what: str) -> tuple[bytes, dict[Any, Any], bytes | None, bytes]:
    if len(data) > STATEMENT_BYTES_MAX:
        raise ReceiptError(f"{what} is longer than {STATEMENT_BYTES_MAX} bytes")
    if data[:1] != COSE_SIGN1_HEAD:
        raise ReceiptError(f"{what} is not a tagged COSE_Sign1")
    parts = _strict(data[1:], what)
    if not isinstance(parts, list) or len(parts) != 4:
        raise ReceiptError(f"{what} is not a tagged COSE_Sign1")
    protected, unprotected, payload, signature = parts
    types = (isinstance(protected, bytes), isinstance(unprotected, dict), isinstance(signature, bytes))
    if not all(types) or not (payload is None or isinstance(payload, bytes)):
        raise ReceiptError(f"{what} is not a tagged COSE_Sign1")
    return protected, unprotected, payload, signature


def make_seal(key: SigningKey, chain_id: bytes, header: Header, body: HeaderBody, count: int) -> bytes:
    """Makes the proposer's seal of a block of ``count`` transactions: COSE_Sign1, payload detached (SPEC-RCP-1)."""
    protected = SealHeader(key.public_key, chain_id, body.height, header.block_id, count).encode()
    return _cose_sign1(protected, {}, None, key.sign(_seal_digest(protected, body.tx_root)))


def check_seal(block: Block, chain_id: bytes) -> None:
    """Raises ``ReceiptError`` unless the block's seal is its own proposer's over this very block."""
    protected, unprotected, payload, signature = _parse_cose_sign1(block.seal, "seal")
    expected = SealHeader(block.body.proposer, chain_id, block.height, block.block_id, block.count)
    if SealHeader.decode(protected) != expected or unprotected or payload is not None:
        raise ReceiptError(f"the seal of height {block.height} is for another block")
    _check_signature(protected, block.body, signature)


def check_seals(headers: Sequence[SealedHeader], chain_id: bytes, *, threads: int | None = None) -> bytes:
    """Returns n bytes: 1 for each of n headers whose seal is its own proposer's over this very header (SPEC-TREE-9).

    The same seals pass as in :func:`check_seal`, at the cost of one batch of signatures.
    """
    digests, signatures, keys = bytearray(), bytearray(), bytearray()
    mask = bytearray(len(headers))
    well_formed = []
    for index, sealed in enumerate(headers):
        body, seal = sealed.body, sealed.seal
        protected = SealHeader(body.proposer, chain_id, body.height, sealed.block_id, sealed.count).encode()
        signature = seal[-SIGNATURE_BYTES:]
        # There is one deterministic encoding: what differs from it in a bit is no seal of this header.
        if len(signature) != SIGNATURE_BYTES or seal != _cose_sign1(protected, {}, None, signature):
            continue
        well_formed.append(index)
        digests += _seal_digest(protected, body.tx_root)
        signatures += signature
        keys += body.proposer
    if well_formed:
        verdicts = verify_batch(bytes(digests), bytes(signatures), bytes(keys), threads=threads)
        for index, verdict in zip(well_formed, verdicts, strict=True):
            mask[index] = verdict
    return bytes(mask)


def _check_signature(protected: bytes, body: HeaderBody, signature: bytes) -> None:
    if len(signature) != 64:
        raise ReceiptError("a seal's signature has 64 bytes")
    try:
        verify_one(_seal_digest(protected, body.tx_root), signature, body.proposer)
    except FastLedgerError:
        raise ReceiptError("the seal's signature does not verify") from None


def make_receipt(block: Block, txids: bytes, index: int) -> bytes:
    """Makes the COSE Receipt of transaction ``index`` (RFC 9942); ``txids`` are the block's n × 32 bytes."""
    entries, offsets = result_entries(txids, block.results)
    tx_path = inclusion_proof(txids, index)
    result_path = inclusion_proof(leaf_hashes(entries, offsets), index, hashed=True)
    proof = encode([block.count, index, tx_path])
    outcome = encode([block.header.encode(), block.body.encode(), block.result(index), result_path])
    protected, _, _, signature = _parse_cose_sign1(block.seal, "seal")
    unprotected = {PROOFS_LABEL: {INCLUSION_PROOFS: [proof]}, OUTCOME_LABEL: outcome}
    return _cose_sign1(protected, unprotected, None, signature)


def make_statement(transaction: bytes, receipt: bytes) -> bytes:
    """Makes the transparent statement (RFC 9943): the transaction with ``receipt`` in its unprotected header."""
    protected, _, payload, signature = _parse_cose_sign1(transaction, "transaction")
    return _cose_sign1(protected, {RECEIPTS_LABEL: [receipt]}, payload, signature)


@dataclass(frozen=True, repr=False)
class Verified(BriefRepr):
    """The facts that a verified statement proves: this transaction stands at this place with this result."""

    transaction: Transaction
    code: Code
    height: int
    index: int
    block_id: bytes
    time_ms: int
    proposer: bytes


def verify_statement(
    statement: bytes, *, chain_id: bytes, proposers: Collection[bytes], txid: bytes | None = None
) -> Verified:
    """Checks a transparent statement offline against a chain's id and its proposers' 33-byte keys.

    With ``txid`` (32 bytes) the statement has to be that transaction's. Raises ``ReceiptError`` (or
    ``TransactionError`` for the transaction inside) at the first thing that is wrong.
    """
    protected, unprotected, payload, signature = _parse_cose_sign1(statement, "statement")
    receipts = unprotected.get(RECEIPTS_LABEL)
    if set(unprotected) != {RECEIPTS_LABEL} or not isinstance(receipts, list) or len(receipts) != 1:
        raise ReceiptError("a statement carries one receipt")
    if not isinstance(receipts[0], bytes):
        raise ReceiptError("a receipt is a byte string")
    transaction = Transaction.decode(_cose_sign1(protected, {}, payload, signature))
    verify_one(transaction.txid, transaction.encoded[-64:], transaction.signer)
    if transaction.chain_id != chain_id:
        raise ReceiptError("the transaction is for another chain")
    verified = _verify_receipt(receipts[0], transaction, chain_id, proposers)
    if txid is not None and transaction.txid != txid:
        raise ReceiptError("the receipt is another transaction's")
    return verified


def _verify_receipt(
    receipt: bytes, transaction: Transaction, chain_id: bytes, proposers: Collection[bytes]
) -> Verified:
    protected, unprotected, payload, signature = _parse_cose_sign1(receipt, "receipt")
    seal = SealHeader.decode(protected)
    if payload is not None or set(unprotected) != {PROOFS_LABEL, OUTCOME_LABEL}:
        raise ReceiptError("a receipt has a detached payload, one proof and one outcome")
    if seal.chain_id != chain_id or seal.proposer not in proposers:
        raise ReceiptError("the receipt is not signed by a proposer of this chain")
    tree_size, index, tx_path = _parse_proof(unprotected[PROOFS_LABEL])
    if tree_size != seal.count:
        raise ReceiptError("proof and seal count different transactions")
    header, body, code, result_path = _parse_outcome(unprotected[OUTCOME_LABEL])
    if header.block_id != seal.block_id or header.commitment != body.commitment:
        raise ReceiptError("header and seal name different blocks")
    if body.height != seal.height or body.proposer != seal.proposer:
        raise ReceiptError("header and seal name different blocks")
    _check_signature(protected, body, signature)
    if not verify_inclusion(transaction.txid, index, tree_size, tx_path, body.tx_root):
        raise ReceiptError("the inclusion proof of the transaction does not verify")
    result_leaf = leaf_hash(transaction.txid + code.to_bytes(2, "big"))
    if not verify_inclusion(result_leaf, index, tree_size, result_path, body.result_root, hashed=True):
        raise ReceiptError("the inclusion proof of the result does not verify")
    return Verified(transaction, code, body.height, index, seal.block_id, body.time_ms, body.proposer)


def _is_path(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(node, bytes) and len(node) == 32 for node in value)


def _parse_proof(proofs: Any) -> tuple[int, int, list[bytes]]:
    encoded = proofs.get(INCLUSION_PROOFS) if isinstance(proofs, dict) and len(proofs) == 1 else None
    if not isinstance(encoded, list) or len(encoded) != 1:
        raise ReceiptError("a receipt has one inclusion proof")
    tree_size, index, path = _array(encoded[0], 3, "inclusion proof")
    if type(tree_size) is not int or type(index) is not int or not _is_path(path):
        raise ReceiptError("the inclusion proof is malformed")
    return tree_size, index, path


def _parse_outcome(encoded: Any) -> tuple[Header, HeaderBody, Code, list[bytes]]:
    header80, body, code, path = _array(encoded, 4, "outcome")
    well_formed = isinstance(header80, bytes) and isinstance(body, bytes) and type(code) is int
    if not well_formed or not _is_path(path):
        raise ReceiptError("the outcome is malformed")
    try:
        return Header.decode(header80), HeaderBody.decode(body), Code(code), path
    except (InputError, ValueError):
        raise ReceiptError("the outcome is malformed") from None


def _array(encoded: Any, count: int, what: str) -> list[Any]:
    """Returns the items of an encoded array of ``count`` items; raises ``ReceiptError`` for anything else."""
    items = _strict(encoded, what) if isinstance(encoded, bytes) else None
    if not isinstance(items, list) or len(items) != count:
        raise ReceiptError(f"the {what} is malformed")
    return items
