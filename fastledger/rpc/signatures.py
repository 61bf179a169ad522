"""Foreign ES256K signatures at the border: s is brought into its lower half (SPEC-RPC-8, BIP-146).

Many signers know nothing of low S, and the chain accepts nothing else. Only the signature's bytes change; the txid is
the digest that was signed and stays. What is no signature at all is left for the border to refuse.
"""

from fastledger.chain.admission import cut_sequence
from fastledger.crypto.signing import LOW_S_MAX, normalize_low_s
from fastledger.errors import TransactionError
from fastledger.model.transaction import SIGNATURE_HEAD, perhaps_high_s

_LOW_FIRST_BYTE = LOW_S_MAX >> 248
_TAIL_BYTES = 66


def low_s(encoded: bytes) -> bytes:
    """Returns a transaction with its signature in canonical form, where the only fault of that is a high s."""
    if len(encoded) < _TAIL_BYTES or encoded[-32] < _LOW_FIRST_BYTE or encoded[-66:-64] != SIGNATURE_HEAD:
        return encoded
    try:
        return encoded[:-64] + normalize_low_s(encoded[-64:])
    except TransactionError:
        return encoded


def low_s_sequence(data: bytes) -> tuple[bytes, int]:
    """Returns a CBOR sequence of transactions with signatures made canonical as by :func:`low_s`, and their number.

    Raises ``InputError`` naming the byte where the sequence breaks.
    """
    offsets = cut_sequence(data)
    suspects = perhaps_high_s(data, offsets)
    changed: bytearray | None = None
    for place in suspects:
        start, end = offsets[place], offsets[place + 1]
        encoded = data[start:end]
        canonical = low_s(encoded)
        if canonical is not encoded and canonical != encoded:
            changed = bytearray(data) if changed is None else changed
            changed[start:end] = canonical
    return (data if changed is None else bytes(changed)), len(offsets) - 1
