"""Folder keys, grant bundles and blind index tokens."""

import hmac
import json
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap
from hypothesis import given, settings
from hypothesis import strategies as st

from fastledger.crypto.folders import (
    EPOCH_MAX,
    INDEX_TERM_BYTES_MAX,
    FolderKey,
    WrappedFolderKeys,
    blind_token,
    blind_tokens,
    key_id,
    split_key_id,
    unwrap_folder_keys,
    wrap_folder_keys,
)
from fastledger.crypto.hpke import KemPrivateKey, KemSuite, context_info
from fastledger.errors import Code, EnvelopeError
from fastledger.limits import FOLDERS_PER_CONSENT_MAX, TRANSACTION_BYTES_MAX

FOLDER = bytes(range(0x10, 0x20))
KEY = FolderKey(FOLDER, 3, bytes(range(32)))
READER = KemPrivateKey(KemSuite.MLKEM768_X25519, bytes(range(32)))
CONTEXT = context_info("test", b"chain-id", b"grantee", b"consent")
BUNDLE_KEYS = [KEY, FolderKey(FOLDER, 4, bytes(range(1, 33))), FolderKey(bytes(16), 3, bytes(range(2, 34)))]
BUNDLE = wrap_folder_keys(READER.public_bytes, BUNDLE_KEYS, context=CONTEXT)
FOLDERS = [(key.folder, key.epoch) for key in BUNDLE_KEYS]


def hkdf_expand(key: bytes, info: bytes, size: int = 32) -> bytes:
    """RFC 5869 §2.3 in the open."""
    okm = block = b""
    while len(okm) < size:
        block = hmac.digest(key, block + info + bytes([len(okm) // 32 + 1]), "sha256")
        okm += block
    return okm[:size]


@pytest.mark.data
def test_oracle_agrees_with_wycheproof_hkdf(shared_data: Path) -> None:
    suite = json.loads((shared_data / "wycheproof" / "hkdf_sha256_test.json").read_text())
    checked = 0
    for case in (case for group in suite["testGroups"] for case in group["tests"]):
        if case["result"] == "invalid":
            continue  # The only invalid ones ask for more than 255 blocks, which nothing here ever does.
        salt, ikm, info = (bytes.fromhex(case[name]) for name in ("salt", "ikm", "info"))
        okm = hkdf_expand(hmac.digest(salt or bytes(32), ikm, "sha256"), info, case["size"])
        assert okm.hex() == case["okm"], case["tcId"]
        checked += 1
    assert checked > 50


def test_derived_keys_are_the_specified_ones() -> None:  # SPEC-FOLDER-2
    # ["fastledger/wrap/v1", h'1011…', 3] and ["fastledger/index/v1", …], encoded by hand.
    assert KEY.wrap_key == hkdf_expand(KEY.key, b"\x83\x72fastledger/wrap/v1\x50" + FOLDER + b"\x03")
    assert KEY.index_key == hkdf_expand(KEY.key, b"\x83\x73fastledger/index/v1\x50" + FOLDER + b"\x03")


def test_every_use_folder_and_epoch_has_its_own_key() -> None:
    keys = [KEY, FolderKey(FOLDER, 4, KEY.key), FolderKey(bytes(16), 3, KEY.key)]
    derived = {secret for key in keys for secret in (key.key, key.wrap_key, key.index_key)}
    assert len(derived) == 7  # Three of each use, and the one key that all of them share.


def test_key_wrap_is_rfc_3394() -> None:
    """RFC 3394 §4.6: 256 bits of key data with a 256-bit key-encryption key."""
    kek = bytes(range(32))
    data = bytes.fromhex("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f")
    wrapped = bytes.fromhex(
        "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"
    )
    assert aes_key_wrap(kek, data) == wrapped
    assert aes_key_unwrap(kek, wrapped) == data


def test_a_bundle_opens_as_specified() -> None:  # SPEC-FOLDER-3
    """By hand: HPKE to the KEK, HKDF to each folder's own key, RFC 3394 to the folder key."""
    kek = READER.unwrap(BUNDLE.wrap, context_info("fastledger/folder-keys/v1", CONTEXT))
    for folder_key, wrapped in zip(BUNDLE_KEYS, BUNDLE.keys, strict=True):
        info = b"\x83\x78\x18fastledger/folder-key/v1\x50" + folder_key.folder + bytes([folder_key.epoch])
        assert aes_key_unwrap(hkdf_expand(kek, info), wrapped) == folder_key.key


@pytest.mark.parametrize("suite", list(KemSuite))
def test_a_reader_gets_its_folder_keys(suite: KemSuite) -> None:
    reader = KemPrivateKey.generate(suite)
    keys = [FolderKey.generate(epoch=epoch) for epoch in (0, 23, 24, 65536, EPOCH_MAX)]
    wrapped = wrap_folder_keys(reader.public_bytes, keys, context=CONTEXT)
    folders = [(key.folder, key.epoch) for key in keys]
    assert unwrap_folder_keys(reader, wrapped, folders, context=CONTEXT) == keys


def test_the_largest_bundle_fits_a_transaction() -> None:
    keys = [FolderKey.generate() for _ in range(FOLDERS_PER_CONSENT_MAX)]
    wrapped = wrap_folder_keys(READER.public_bytes, keys, context=CONTEXT)
    assert {len(item) for item in wrapped.keys} == {40}
    assert len(wrapped.wrap) + sum(20 + len(item) for item in wrapped.keys) < TRANSACTION_BYTES_MAX // 2


@pytest.mark.parametrize(
    ("reader", "folders", "context"),
    [
        (KemPrivateKey.generate(), FOLDERS, CONTEXT),
        (READER, FOLDERS, CONTEXT[:-1] + b"X"),
        (READER, FOLDERS, b""),
        (READER, [FOLDERS[1], FOLDERS[0], FOLDERS[2]], CONTEXT),
        (READER, [(FOLDER, 2), *FOLDERS[1:]], CONTEXT),
        (READER, [(bytes(15) + b"\1", 3), *FOLDERS[1:]], CONTEXT),
    ],
    ids=["reader", "context", "no-context", "order", "epoch", "folder"],
)
def test_a_bundle_opens_only_as_what_it_was_made_for(
    reader: KemPrivateKey, folders: list[tuple[bytes, int]], context: bytes
) -> None:  # SPEC-FOLDER-3
    with pytest.raises(EnvelopeError) as refusal:
        unwrap_folder_keys(reader, BUNDLE, folders, context=context)
    assert refusal.value.code is Code.BAD_ENVELOPE


@given(index=st.integers(0, 2), position=st.integers(0, 39), bit=st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_a_damaged_folder_key_is_refused(index: int, position: int, bit: int) -> None:
    damaged = bytearray(BUNDLE.keys[index])
    damaged[position] ^= 1 << bit
    keys = [*BUNDLE.keys[:index], bytes(damaged), *BUNDLE.keys[index + 1 :]]
    with pytest.raises(EnvelopeError):
        unwrap_folder_keys(READER, WrappedFolderKeys(BUNDLE.wrap, tuple(keys)), FOLDERS, context=CONTEXT)


def test_impossible_bundles_are_refused() -> None:  # SPEC-FOLDER-4
    too_many = FOLDERS_PER_CONSENT_MAX + 1
    first = BUNDLE.keys[0]
    for wrapped, folders, code in (
        (WrappedFolderKeys(BUNDLE.wrap, ()), [], Code.MALFORMED),
        (WrappedFolderKeys(BUNDLE.wrap, (first,) * too_many), [FOLDERS[0]] * too_many, Code.MALFORMED),
        (BUNDLE, FOLDERS[:2], Code.MALFORMED),
        (BUNDLE, [(FOLDER, -1), *FOLDERS[1:]], Code.MALFORMED),
        (BUNDLE, [(FOLDER[:15], 3), *FOLDERS[1:]], Code.MALFORMED),
        (WrappedFolderKeys(BUNDLE.wrap, (first[:32], *BUNDLE.keys[1:])), FOLDERS, Code.BAD_ENVELOPE),
        (
            WrappedFolderKeys(BUNDLE.wrap, (aes_key_wrap(bytes(32), bytes(64)),)),
            FOLDERS[:1],
            Code.BAD_ENVELOPE,
        ),
        (WrappedFolderKeys(b"", BUNDLE.keys), FOLDERS, Code.BAD_ENVELOPE),
    ):
        with pytest.raises(EnvelopeError) as refusal:
            unwrap_folder_keys(READER, wrapped, folders, context=CONTEXT)
        assert refusal.value.code is code
    for keys in ([], [KEY] * too_many):
        with pytest.raises(EnvelopeError):
            wrap_folder_keys(READER.public_bytes, keys, context=CONTEXT)


@pytest.mark.parametrize("size", [16, 24, 64])
def test_a_bundle_of_other_than_256_bit_keys_is_refused(size: int) -> None:
    """Made by the granter itself, so that it unwraps."""
    kek = READER.unwrap(BUNDLE.wrap, context_info("fastledger/folder-keys/v1", CONTEXT))
    own = hkdf_expand(kek, b"\x83\x78\x18fastledger/folder-key/v1\x50" + FOLDER + b"\x03")
    bundle = WrappedFolderKeys(BUNDLE.wrap, (aes_key_wrap(own, bytes(size)),))
    with pytest.raises(EnvelopeError) as refusal:
        unwrap_folder_keys(READER, bundle, FOLDERS[:1], context=CONTEXT)
    assert refusal.value.code is Code.BAD_ENVELOPE


def test_impossible_folder_keys_are_refused() -> None:  # SPEC-FOLDER-1
    for folder, epoch, key in (
        (FOLDER[:15], 0, bytes(32)),
        (FOLDER + b"\0", 0, bytes(32)),
        (FOLDER, -1, bytes(32)),
        (FOLDER, EPOCH_MAX + 1, bytes(32)),
        (FOLDER, 0, bytes(31)),
        (FOLDER, 0, bytes(33)),
    ):
        with pytest.raises(EnvelopeError) as refusal:
            FolderKey(folder, epoch, key)
        assert refusal.value.code is Code.MALFORMED
    with pytest.raises(EnvelopeError):
        FolderKey(FOLDER, EPOCH_MAX, bytes(32)).rotate()


def test_rotation_starts_a_new_epoch_of_the_same_folder() -> None:
    after = KEY.rotate()
    assert (after.folder, after.epoch) == (KEY.folder, KEY.epoch + 1)
    assert after.key != KEY.key
    assert FolderKey.generate().folder != FolderKey.generate().folder


def test_folder_keys_survive_their_encoding() -> None:
    encoded = KEY.to_bytes()
    assert encoded == b"\x01" + FOLDER + b"\0\0\0\x03" + KEY.key
    assert FolderKey.from_bytes(encoded) == KEY
    assert split_key_id(KEY.key_id) == split_key_id(key_id(FOLDER, 3)) == (FOLDER, 3)
    for bad in (b"", encoded[:-1], encoded + b"\0", b"\x02" + encoded[1:]):
        with pytest.raises(EnvelopeError):
            FolderKey.from_bytes(bad)
    with pytest.raises(EnvelopeError):
        split_key_id(KEY.key_id[:-1])


def test_a_folder_key_crosses_to_another_process_without_its_derived_keys() -> None:
    token = blind_token(KEY, "type:Observation")
    again = pickle.loads(pickle.dumps(KEY))
    assert again == KEY
    assert set(vars(again)) == {"folder", "epoch", "key"}
    assert blind_token(again, "type:Observation") == token


def test_a_folder_key_does_not_show_itself() -> None:
    assert repr(KEY.key) not in repr(KEY)
    assert "key" not in repr(KEY).lower().removeprefix("folderkey")


@given(st.text(min_size=1, max_size=INDEX_TERM_BYTES_MAX // 4))
def test_tokens_are_truncated_hmac(term: str) -> None:  # SPEC-FOLDER-5
    try:
        encoded = term.encode()
    except UnicodeEncodeError:
        with pytest.raises(EnvelopeError):
            blind_token(KEY, term)
    else:
        assert blind_token(KEY, term) == hmac.digest(KEY.index_key, encoded, "sha256")[:16]


def test_tokens_part_with_term_folder_and_epoch() -> None:  # SPEC-FOLDER-5
    term = "code:http://loinc.org|8302-2"
    tokens = {
        blind_token(KEY, term),
        blind_token(KEY, "code:http://loinc.org|8302-3"),
        blind_token(KEY.rotate(), term),
        blind_token(FolderKey(FOLDER, 4, KEY.key), term),
        blind_token(FolderKey(bytes(16), 3, KEY.key), term),
    }
    assert len(tokens) == 5


def test_a_token_of_format_version_1() -> None:
    """Frozen: a change here orphans every index on every chain. Confirmed with ``openssl dgst -mac HMAC``."""
    assert blind_token(KEY, "code:http://loinc.org|8302-2").hex() == "2e90a04125bfbda6f4946c85e6ea74be"


def test_tokens_of_a_record_come_sorted_and_once() -> None:
    terms = ["type:Observation", "month:2019-05", "type:Observation", "code:http://loinc.org|8302-2"]
    tokens = blind_tokens(KEY, terms)
    assert tokens == sorted(set(tokens)) == blind_tokens(KEY, reversed(terms))
    assert set(tokens) == {blind_token(KEY, term) for term in terms}


def test_impossible_terms_are_refused() -> None:
    for term in ("", "x" * (INDEX_TERM_BYTES_MAX + 1), "é" * (INDEX_TERM_BYTES_MAX // 2 + 1), "\ud800"):
        with pytest.raises(EnvelopeError) as refusal:
            blind_token(KEY, term)
        assert refusal.value.code is Code.MALFORMED
    assert blind_token(KEY, "x" * INDEX_TERM_BYTES_MAX)
