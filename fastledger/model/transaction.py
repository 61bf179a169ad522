"""The transaction: a COSE_Sign1 with one algorithm, one header layout and one encoding.

::

    COSE_Sign1 = 18([ protected, {}, payload, signature ])          RFC 9052 §4.2
    protected  = {1: -47, 4: signer}                                ES256K (RFC 8812), 33-byte compressed key
    payload    = [chain_id, kind, issued_ms, expires_ms, nonce, body]
    txid       = SHA-256(["Signature1", protected, h'', payload])   the digest that is signed

Nothing outside the signed bytes can change the id (SPEC-TX-5). The fixed prefix lets the native scanner compare
instead of parse.
"""

import hashlib
from array import array
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastledger._native.scan import ScanBatch, find_at_least, scan_many
from fastledger.crypto.cbor_head import bstr_head
from fastledger.crypto.signing import LOW_S_MAX, SigningKey
from fastledger.errors import Code, TransactionError
from fastledger.model.body import Body, body_map, kind_of, parse_body
from fastledger.model.codec import decode, encode
from fastledger.reprs import short_hex

if TYPE_CHECKING:
    from typing_extensions import Buffer

PROTECTED_PREFIX = bytes.fromhex("a201382e045821")
SIG_STRUCTURE_PREFIX = b"\x84\x6aSignature1\x58\x28"
ENVELOPE_PREFIX = bytes.fromhex("d2845828")
SIGNATURE_HEAD = b"\x58\x40"

def perhaps_high_s(data: bytes, offsets: "Buffer") -> list[int]:
    """Returns the indices of transactions ``data[offsets[i]:offsets[i + 1]]`` whose s may be above its lower half.

    It looks at the first byte of s alone, the 32nd before the end: every high s is found, and a few others.
    """
    return find_at_least(data, offsets, 32, LOW_S_MAX >> 248)


def signing_input(signer: bytes, payload: bytes) -> bytes:
    """Returns the Sig_structure (RFC 9052 §4.4) of ``payload`` under the 33-byte key ``signer``."""
    return b"".join(
        (SIG_STRUCTURE_PREFIX, PROTECTED_PREFIX, signer, b"\x40", bstr_head(len(payload)), payload)
    )


@dataclass(frozen=True)
class Transaction:
    """A signed transaction; ``encoded`` is its one and only wire form."""

    encoded: bytes
    txid: bytes
    signer: bytes
    chain_id: bytes
    kind: str
    issued_ms: int
    expires_ms: int
    nonce: int
    body_bytes: bytes

    def __repr__(self) -> str:
        by = short_hex(self.signer)
        return f"<Transaction {self.kind} {short_hex(self.txid)} by {by}, {len(self.encoded)} bytes>"

    @cached_property
    def body_map(self) -> dict[str, Any]:
        """The body as decoded CBOR."""
        value: dict[str, Any] = decode(self.body_bytes, what="body")
        return value

    @cached_property
    def body(self) -> Body:
        """The typed body; raises ``InputError`` for an unknown kind or a body that does not fit."""
        return parse_body(self.kind, self.body_map)

    @classmethod
    def sign(
        cls,
        key: SigningKey,
        *,
        chain_id: bytes,
        body: Body,
        issued_ms: int,
        expires_ms: int,
        nonce: int,
    ) -> "Transaction":
        """Encodes ``body`` under its kind and signs it (RFC 6979, low S).

        ``chain_id`` is 8 bytes; times are UTC milliseconds; ``nonce`` is any uint64 that makes the transaction
        differ from the signer's others of the same content and time.
        """
        kind = kind_of(type(body))
        body_bytes = encode(body_map(body))
        head = encode([chain_id, kind, issued_ms, expires_ms, nonce])
        payload = b"\x86" + head[1:] + body_bytes
        signer = key.public_key
        txid = hashlib.sha256(signing_input(signer, payload)).digest()
        encoded = b"".join(
            (
                ENVELOPE_PREFIX,
                PROTECTED_PREFIX,
                signer,
                b"\xa0",
                bstr_head(len(payload)),
                payload,
                SIGNATURE_HEAD,
                key.sign(txid),
            )
        )
        return cls(encoded, txid, signer, chain_id, kind, issued_ms, expires_ms, nonce, body_bytes)

    @classmethod
    def decode(cls, data: bytes) -> "Transaction":
        """Returns the transaction of ``data``, whose form is checked, but not its signature.

        Raises ``TransactionError`` with ``MALFORMED``, ``OVERSIZED``, ``NON_CANONICAL`` or ``BAD_HEADER``.
        """
        scan = scan_many(data, array("Q", (0, len(data))))
        status = scan.status(0)
        if status != Code.OK:
            code = Code(status)
            raise TransactionError(
                f"{code.text} (byte {scan.error_offset(0)} of {len(data)})", code=code, index=0
            )
        return cls.from_scan(scan, 0, data)

    @classmethod
    def from_scan(cls, scan: ScanBatch, index: int, encoded: bytes) -> "Transaction":
        """Returns the transaction at ``index`` of a scanned batch.

        ``encoded`` are the bytes of this transaction alone.
        """
        return cls(
            encoded=encoded,
            txid=scan.txids[32 * index : 32 * index + 32],
            signer=scan.signers[33 * index : 33 * index + 33],
            chain_id=bytes(scan.chain_id(index)),
            kind=scan.kind(index),
            issued_ms=scan.issued_ms(index),
            expires_ms=scan.expires_ms(index),
            nonce=scan.nonce(index),
            body_bytes=bytes(scan.body(index)),
        )
