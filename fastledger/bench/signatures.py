"""Benchmarks of what every transaction passes: signatures beside libsecp256k1, and the scan beside cbor2."""

import os
from array import array
from random import Random

import cbor2
from coincurve import PublicKey
from coincurve.ecdsa import cdata_to_der, deserialize_compact

from fastledger._native.scan import scan_many
from fastledger.bench.measure import SEED, Contestant, Row, compete
from fastledger.crypto.signing import ORDER, SigningKey, verify_batch

SIGNERS = 64
BODY_BYTES = 240


def cpu_count() -> int:
    """Returns how many CPUs this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _batch(count: int) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Returns digests, compact signatures and compressed keys of ``count`` signatures by `SIGNERS` keys."""
    random = Random(SEED)
    signers = [SigningKey.from_bytes(random.randrange(1, ORDER).to_bytes(32, "big")) for _ in range(SIGNERS)]
    digests = [random.randbytes(32) for _ in range(count)]
    chosen = [signers[i % SIGNERS] for i in range(count)]
    signatures = [signer.sign(digest) for signer, digest in zip(chosen, digests, strict=True)]
    return digests, signatures, [signer.public_key for signer in chosen]


def verify_rows(count: int, rounds: int) -> list[Row]:
    """Measures ``verify_batch`` beside a loop over coincurve.

    The loop's keys are parsed and its signatures DER already.
    """
    digests, signatures, keys = _batch(count)
    parsed = {key: PublicKey(key) for key in set(keys)}
    calls = [
        (parsed[key], cdata_to_der(deserialize_compact(signature)), digest)
        for key, signature, digest in zip(keys, signatures, digests, strict=True)
    ]
    columns = b"".join(digests), b"".join(signatures), b"".join(keys)
    contestants = [
        Contestant(
            "coincurve loop",
            lambda: bytes(key.verify(der, digest, hasher=None) for key, der, digest in calls),
            count,
        ),
        Contestant("verify_batch, 1 thread", lambda: verify_batch(*columns, threads=1), count),
        Contestant("verify_batch, all CPUs", lambda: verify_batch(*columns), count),
    ]
    return compete(f"ECDSA verification, {count:,} signatures", "signature", contestants, rounds)


def _transactions(count: int) -> tuple[list[bytes], "array[int]"]:
    """Returns transactions that have the right form and noise for signatures, and their offsets in one buffer."""
    random = Random(SEED)
    parts, offsets = [], array("Q", [0])
    for nonce in range(count):
        body = {"data": random.randbytes(BODY_BYTES), "folder": random.randbytes(16)}
        payload = cbor2.dumps([bytes(8), "record.put", 1_700_000_000_000, 1_700_000_600_000, nonce, body])
        protected = cbor2.dumps({1: -47, 4: b"\x02" + random.randbytes(32)})
        parts.append(cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, random.randbytes(64)])))
        offsets.append(offsets[-1] + len(parts[-1]))
    return parts, offsets


def _signatures_by_cbor2(parts: list[bytes]) -> bytes:
    """Decodes outline and payload, the nearest that a general decoder does: no ids, no rules of encoding."""
    signatures = []
    for part in parts:
        _, _, payload, signature = cbor2.loads(part).value
        cbor2.loads(payload)
        signatures.append(signature)
    return b"".join(signatures)


def scan_rows(count: int, rounds: int) -> list[Row]:
    """Measures ``scan_many``: outline, strict encoding, shape and id of each transaction."""
    parts, offsets = _transactions(count)
    buffer = b"".join(parts)
    contestants = [
        Contestant("cbor2 loop", lambda: _signatures_by_cbor2(parts), count),
        Contestant("scan_many", lambda: scan_many(buffer, offsets).signatures, count),
    ]
    size = len(buffer) // count
    return compete(f"scan of {count:,} transactions of {size} bytes", "transaction", contestants, rounds)


def rows(quick: bool) -> list[Row]:
    """Runs both benchmarks at several batch sizes; ``quick`` takes small ones."""
    rounds = 1 if quick else 5
    found = []
    for count in (1, 32) if quick else (1, 16, 64, 256, 1_024, 4_096):
        found += verify_rows(count, rounds)
    for count in (16,) if quick else (1, 64, 1_000):
        found += scan_rows(count, rounds)
    return found
