"""Batch verification against published vectors, two other verifiers and the edges of its own machinery."""

import hashlib
import json
import lzma
import os
import random
import subprocess
import sys
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from coincurve import PublicKey
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from fastledger._native.ecdsa import (
    KEY_CACHE_ENTRIES_DEFAULT,
    KEY_CACHE_ENTRIES_MAX,
    ecdsa_backend,
    resize_key_cache,
    verify_batch,
)
from fastledger.crypto.signing import LOW_S_MAX, ORDER, SigningKey, normalize_low_s
from fastledger.errors import TransactionError
from fastledger.limits import VERIFY_THREADS_MAX

FIELD_PRIME = 2**256 - 2**32 - 977


@dataclass(frozen=True)
class Signed:
    digest: bytes
    signature: bytes
    key: bytes

    @property
    def r(self) -> int:
        return int.from_bytes(self.signature[:32], "big")

    @property
    def s(self) -> int:
        return int.from_bytes(self.signature[32:], "big")


def compact(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def columns(items: list[Signed]) -> tuple[bytes, bytes, bytes]:
    return (
        b"".join(item.digest for item in items),
        b"".join(item.signature for item in items),
        b"".join(item.key for item in items),
    )


def verdicts(items: list[Signed], threads: int | None = None) -> list[bool]:
    return [bool(each) for each in verify_batch(*columns(items), threads=threads)]


def key_of(index: int) -> SigningKey:
    return SigningKey.from_bytes((index + 1).to_bytes(32, "big"))


def signed(count: int, key_count: int = 20, seed: int = 1) -> list[Signed]:
    """Good signatures over seeded digests by a few keys."""
    source = random.Random(seed)
    keys = [key_of(i) for i in range(key_count)]
    items = []
    for i in range(count):
        digest, key = source.randbytes(32), keys[i % key_count]
        items.append(Signed(digest, key.sign(digest), key.public_key))
    return items


@pytest.fixture(scope="module")
def thousand() -> list[Signed]:
    return signed(1_000)


@pytest.fixture(autouse=True)
def default_cache() -> Iterator[None]:
    resize_key_cache()
    yield
    resize_key_cache()


# ---- Vectors ----


def strict_der(der: bytes) -> bytes | None:
    """r || s of a signature in strict DER (the rules of BIP-66), or None.

    Wycheproof's signatures are DER and most of its bad ones are bad as DER. A transaction has no DER: its 64
    bytes can express neither those nor numbers over 256 bits, so that a refusal here counts as one of ours.
    """
    if len(der) < 8 or der[0] != 0x30 or der[1] != len(der) - 2:
        return None
    numbers, rest = [], der[2:]
    for _ in range(2):
        if len(rest) < 3 or rest[0] != 0x02 or not 0 < rest[1] <= len(rest) - 2:
            return None
        digits, rest = rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
        padded = len(digits) > 1 and digits[0] == 0 and digits[1] < 0x80
        if digits[0] >= 0x80 or padded:
            return None
        numbers.append(int.from_bytes(digits, "big"))
    if rest or max(numbers) >= 2**256:
        return None
    return compact(*numbers)


def wycheproof(path: Path) -> Iterator[tuple[dict[str, Any], Signed | None]]:
    for group in json.loads(path.read_text())["testGroups"]:
        key = PublicKey(bytes.fromhex(group["publicKey"]["uncompressed"])).format(compressed=True)
        for case in group["tests"]:
            digest = hashlib.sha256(bytes.fromhex(case["msg"])).digest()
            signature = strict_der(bytes.fromhex(case["sig"]))
            yield case, None if signature is None else Signed(digest, signature, key)


def check_wycheproof(cases: list[tuple[dict[str, Any], Signed | None]]) -> int:
    """Compare every verdict; returns how many of the cases got as far as the native code."""
    asked = [(case, item) for case, item in cases if item is not None]
    found = verdicts([item for _, item in asked])
    accepted = {case["tcId"] for (case, _), good in zip(asked, found, strict=True) if good}
    expected = {case["tcId"] for case, _ in cases if case["result"] == "valid"}
    assert accepted == expected
    return len(asked)


@pytest.mark.data
def test_wycheproof_bitcoin(shared_data: Path) -> None:  # SPEC-SIG-2, SPEC-SIG-3
    """The strictness to match: low s is demanded."""
    cases = list(wycheproof(shared_data / "wycheproof" / "ecdsa_secp256k1_sha256_bitcoin_test.json"))
    assert len(cases) == 463
    assert check_wycheproof(cases) > 200


@pytest.mark.data
def test_wycheproof_without_the_low_s_rule(shared_data: Path) -> None:  # SPEC-SIG-3
    """Valid cases of high s are refused as they stand; with s normalised, every verdict is the published."""
    cases = list(wycheproof(shared_data / "wycheproof" / "ecdsa_secp256k1_sha256_test.json"))
    assert len(cases) == 476
    high = [item for case, item in cases if item and case["result"] == "valid" and item.s > LOW_S_MAX]
    assert len(high) > 20
    assert not any(verdicts(high))
    assert check_wycheproof([(case, item and (normalized(item) or item)) for case, item in cases]) > 200


def normalized(item: Signed) -> Signed | None:
    try:
        return Signed(item.digest, normalize_low_s(item.signature), item.key)
    except TransactionError:
        return None


@pytest.mark.data
def test_cavp_signatures(shared_data: Path) -> None:
    """SECP256K1-SigGen, SHA-256 section: half of the signatures have a high s, which is normalised."""
    lines = lzma.decompress((shared_data / "nist-cavp" / "SECP256K1-SigGen.txt.xz").read_bytes()).decode()
    section = lines.split("[K-256,SHA-256]")[1].split("[K-256")[0]
    items = []
    for block in section.strip().split("\n\n"):
        entry = dict(line.split(" = ") for line in block.splitlines())
        x, y, r, s = (int(entry[name], 16) for name in ("Qx", "Qy", "R", "S"))
        key = bytes([2 + y % 2]) + x.to_bytes(32, "big")
        digest = hashlib.sha256(bytes.fromhex(entry["Msg"])).digest()
        items.append(Signed(digest, compact(r, s), key))
    assert len(items) > 50
    assert verdicts(items) == [item.s <= LOW_S_MAX for item in items]
    assert all(verdicts([item for item in map(normalized, items) if item]))


# ---- Other verifiers ----


def coincurve_verdict(item: Signed) -> bool:
    try:
        key = PublicKey(item.key)
        return key.verify(encode_dss_signature(item.r, item.s), item.digest, hasher=None)
    except ValueError:
        return False


def openssl_verdict(item: Signed) -> bool:
    """Another implementation altogether; it knows no low-s rule, so that is added. SPEC-SIG-3"""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), item.key)
        key.verify(encode_dss_signature(item.r, item.s), item.digest, ec.ECDSA(Prehashed(SHA256())))
    except (ValueError, InvalidSignature):
        return False
    return item.s <= LOW_S_MAX


def damaged(item: Signed, source: random.Random) -> Signed:
    part = source.choice(("digest", "signature", "key"))
    content = bytearray(getattr(item, part))
    content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    return Signed(**(vars(item) | {part: bytes(content)}))


def test_same_verdicts_as_other_verifiers(thousand: list[Signed]) -> None:
    source = random.Random(2)
    items = [item if source.random() < 0.5 else damaged(item, source) for item in thousand]
    found = verdicts(items)
    assert found == [coincurve_verdict(item) for item in items]
    assert found[:200] == [openssl_verdict(item) for item in items[:200]]
    assert 300 < sum(found) < 700


def test_special_scalars() -> None:  # SPEC-SIG-2, SPEC-SIG-3
    """r and s from the edges of their ranges in every combination, and the classic forgeries around r."""
    good = signed(1)[0]
    specials = [0, 1, 2, LOW_S_MAX, LOW_S_MAX + 1, ORDER - 1, ORDER, ORDER + 1, FIELD_PRIME, 2**256 - 1]
    items = [Signed(good.digest, compact(r, s), good.key) for r in specials for s in specials]
    items += [Signed(good.digest, compact(good.r, s), good.key) for s in specials]
    items += [Signed(good.digest, compact(r, good.s), good.key) for r in specials]
    items += [Signed(bytes(32), compact(r, s), good.key) for r in specials for s in specials]
    items.append(Signed(good.digest, compact(good.r, ORDER - good.s), good.key))  # high s
    items.append(Signed(good.digest, compact(ORDER - good.r, good.s), good.key))
    items.append(Signed(good.digest, compact(good.s, good.r), good.key))
    found = verdicts(items)
    assert found == [coincurve_verdict(item) for item in items]
    assert not any(found)
    assert verdicts([good]) == [True]


def test_r_beyond_the_order_is_not_taken_modulo_it() -> None:  # SPEC-SIG-2
    """r + n fits into 32 bytes only when r < 2**256 - n: such an r is made by choosing the nonce point.

    For a point of x = r, u1 and u2 are chosen freely and digest and key follow: Q = (R - u1 G) / u2.
    """
    r = next(x for x in range(1, 100) if is_on_curve(b"\x02" + x.to_bytes(32, "big")))
    point = PublicKey(b"\x02" + r.to_bytes(32, "big"))
    # With u1 = 0 the digest is zero, and with u2 = r / s and s = r the key is R itself.
    items = [
        Signed(bytes(32), compact(r, r), point.format()),
        Signed(bytes(32), compact(r + ORDER, r), point.format()),
    ]
    assert verdicts(items) == [True, False]


def is_on_curve(key: bytes) -> bool:
    x = int.from_bytes(key[1:], "big")
    return x < FIELD_PRIME and pow(x**3 + 7, (FIELD_PRIME - 1) // 2, FIELD_PRIME) == 1


def test_keys_that_are_none() -> None:  # SPEC-SIG-1
    good = signed(1)[0]
    x = int.from_bytes(good.key[1:], "big")
    off_curve = next(k for k in range(1, 100) if not is_on_curve(b"\x02" + k.to_bytes(32, "big")))
    keys = [bytes([prefix]) + good.key[1:] for prefix in range(256)]
    keys += [
        b"\x02" + value.to_bytes(32, "big")
        for value in (0, off_curve, FIELD_PRIME, FIELD_PRIME + 1, 2**256 - 1)
    ]
    keys += [bytes([good.key[0] ^ 1]) + x.to_bytes(32, "big"), bytes(33), b"\xff" * 33]
    found = verdicts([Signed(good.digest, good.signature, key) for key in keys])
    assert [key for key, ok in zip(keys, found, strict=True) if ok] == [good.key]


# ---- Batches, threads, buffers ----


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 31, 32, 33, 1_000])
@pytest.mark.parametrize("threads", [None, 1, 2, 5])
def test_every_size_and_thread_count(thousand: list[Signed], count: int, threads: int | None) -> None:
    bad = {0, 7, 8, 31, 32, 500, 999}
    items = [
        Signed(bytes(32), item.signature, item.key) if i in bad else item
        for i, item in enumerate(thousand[:count])
    ]
    expected = bytes(0 if i in bad else 1 for i in range(count))
    assert verify_batch(*columns(items), threads=threads) == expected


def test_misaligned_buffers_of_any_bytes_type(thousand: list[Signed]) -> None:
    digests, signatures, keys = columns(thousand[:40])
    for shift in range(8):
        views = [memoryview(bytes(shift) + part)[shift:] for part in (digests, signatures, keys)]
        assert verify_batch(*views) == b"\x01" * 40
    assert verify_batch(bytearray(digests), array("B", signatures), memoryview(keys)) == b"\x01" * 40


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((33, 64, 33), "digests: expected n x 32 bytes with n = 1, got 33 bytes"),
        ((64, 64, 66), "signatures: expected n x 64 bytes with n = 2, got 64 bytes"),
        ((64, 128, 33), "keys: expected n x 33 bytes with n = 2, got 33 bytes"),
        ((0, 64, 33), "signatures"),
        ((31, 0, 0), "digests"),
    ],
)
def test_shapes_are_checked(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify_batch(*(bytes(size) for size in sizes))


def test_arguments_are_checked() -> None:
    for threads in (0, -1, VERIFY_THREADS_MAX + 1):
        with pytest.raises(ValueError, match="threads"):
            verify_batch(b"", b"", b"", threads=threads)
    with pytest.raises(ValueError, match="keys: expected a contiguous bytes-like object"):
        verify_batch(bytes(32), bytes(64), memoryview(bytes(66))[::2])
    with pytest.raises(ValueError, match="digests"):
        verify_batch(None, b"", b"")  # type: ignore[arg-type]


def test_batches_from_many_threads_at_once(thousand: list[Signed]) -> None:
    """Concurrent batches share the table of keys, which is small enough here to be fought over."""
    resize_key_cache(8)
    failures: list[int] = []

    def work(offset: int) -> None:
        for start in range(offset, 300, 60):
            if verdicts(thousand[start : start + 60], threads=2) != [True] * 60:
                failures.append(start)

    workers = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


def test_a_forked_child_verifies(thousand: list[Signed]) -> None:
    """Forked while other threads use the table of keys, so that its lock is often held at that moment."""
    columns_of_batch = columns(thousand[:64])
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            verify_batch(*columns_of_batch)

    worker = threading.Thread(target=keep_busy)
    worker.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                os._exit(0 if verify_batch(*columns_of_batch) == b"\x01" * 64 else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        worker.join()


# ---- Table of parsed keys ----


def test_a_known_key_is_not_parsed_again() -> None:
    items = signed(40, key_count=5)
    assert all(verdicts(items))
    first = ecdsa_backend()
    assert (first["cache_used"], first["cache_hits"], first["cache_misses"]) == (5, 0, 40)
    assert all(verdicts(items))
    second = ecdsa_backend()
    assert (second["cache_used"], second["cache_hits"], second["cache_misses"]) == (5, 40, 40)


def test_a_key_without_a_good_signature_is_not_kept() -> None:
    assert not any(verdicts([Signed(bytes(32), item.signature, item.key) for item in signed(40)]))
    assert ecdsa_backend()["cache_used"] == 0


@pytest.mark.parametrize("entries", [0, 1, 4, 64, 100])
def test_more_keys_than_the_table_takes(entries: int) -> None:
    """Verdicts are the same whatever is found, evicted or never kept, and the table keeps its bound."""
    resize_key_cache(entries)
    items = signed(400, key_count=300)
    spoiled = [
        Signed(bytes(32), item.signature, item.key) if i % 3 == 0 else item for i, item in enumerate(items)
    ]
    for _ in range(3):
        assert all(verdicts(items))
        assert verdicts(spoiled) == [i % 3 != 0 for i in range(400)]
    backend = ecdsa_backend()
    assert backend["cache_entries"] == {0: 0, 1: 4, 4: 4, 64: 64, 100: 128}[entries]
    assert backend["cache_used"] <= backend["cache_entries"]
    assert (backend["cache_hits"] > 0) == (entries > 0)


def test_keys_that_differ_only_in_parity_are_two_keys() -> None:
    """Q and -Q share x: the table must not answer for one with the other."""
    item = signed(1)[0]
    mirrored = Signed(item.digest, item.signature, bytes([item.key[0] ^ 1]) + item.key[1:])
    for _ in range(2):
        assert verdicts([item, mirrored]) == [True, False]


def test_the_table_has_a_largest_size() -> None:
    with pytest.raises(ValueError, match="entries"):
        resize_key_cache(KEY_CACHE_ENTRIES_MAX + 1)
    assert ecdsa_backend()["cache_entries"] == KEY_CACHE_ENTRIES_DEFAULT


# ---- Backend ----


def test_backend_names_library_and_threads() -> None:
    backend = ecdsa_backend()
    assert backend["library"].startswith("libsecp256k1")
    assert backend["version"].split(".")[0].isdigit()
    assert 1 <= backend["threads"] <= VERIFY_THREADS_MAX


MISSING_SYMBOL = """
import coincurve._libsecp256k1 as binding

class WithoutSymbol:
    def __getattr__(self, name):
        return getattr(real, name)
    def addressof(self, lib, name):
        if name == "{symbol}":
            raise AttributeError(name)
        return real.addressof(lib, name)

real, binding.ffi = binding.ffi, WithoutSymbol()
try:
    import fastledger._native.ecdsa
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "symbol",
    ["secp256k1_ecdsa_verify", "secp256k1_ec_pubkey_parse", "secp256k1_ecdsa_signature_parse_compact"],
)
def test_a_library_without_a_symbol_is_refused_at_import(symbol: str) -> None:
    code = MISSING_SYMBOL.format(symbol=symbol)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"has no {symbol}" in ran.stdout
