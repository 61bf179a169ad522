"""The keystore: what opens it, what damage does to it, and what a crash leaves behind."""

import errno
import hashlib
import os
import pickle
import stat
from pathlib import Path

import cbor2
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given
from hypothesis import strategies as st

from fastledger.crypto import keystore as module
from fastledger.crypto.folders import FolderKey
from fastledger.crypto.hpke import KemPrivateKey
from fastledger.crypto.keystore import (
    DEFAULT_KDF,
    ITERATIONS_MAX,
    KEYSTORE_ENTRY_BYTES_MAX,
    KEYSTORE_NAME_BYTES_MAX,
    LANES_MAX,
    MEMORY_KIB_MAX,
    EntryKind,
    KdfParams,
    Keystore,
)
from fastledger.errors import Code, FastLedgerError, KeystoreError, LedgerError, StorageFullError

PASSWORD = "correct horse"
CHEAP = KdfParams(memory_kib=8, iterations=1, lanes=1)
HEADER_BYTES = 56


def make(path: Path, password: str = PASSWORD) -> Keystore:
    return Keystore.create(path, password, kdf_params=CHEAP, allow_weak_kdf=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A saved keystore with one entry."""
    location = tmp_path / "keys"
    keystore = make(location)
    keystore.put("node", b"secret-of-the-node-0123456789abc", EntryKind.SIGNING_KEY)
    keystore.save()
    return location


def redigest(blob: bytes) -> bytes:
    """``blob`` with its digest made to fit, as one who tampers would."""
    body = blob[:-32]
    return body + hashlib.sha256(body).digest()


def test_argon2id_is_rfc_9106() -> None:
    """RFC 9106 §5.3."""
    tag = Argon2id(
        salt=b"\2" * 16, length=32, iterations=3, lanes=4, memory_cost=32, ad=b"\4" * 12, secret=b"\3" * 8
    ).derive(b"\1" * 32)
    assert tag.hex() == "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"


def test_what_is_saved_is_found_again(path: Path) -> None:
    keystore = Keystore.open(path, PASSWORD)
    kem, folder = KemPrivateKey.generate(), FolderKey.generate(epoch=2)
    keystore.put("kem", kem.to_bytes(), EntryKind.KEM_KEY)
    keystore.put("folder", folder.to_bytes(), EntryKind.FOLDER_KEY)
    keystore.save()
    again = Keystore.open(path, PASSWORD)
    assert again.names() == ["folder", "kem", "node"]
    assert again.names(EntryKind.KEM_KEY) == ["kem"]
    assert KemPrivateKey.from_bytes(again.get("kem", EntryKind.KEM_KEY)).public_bytes == kem.public_bytes
    assert FolderKey.from_bytes(again.get("folder", EntryKind.FOLDER_KEY)) == folder
    assert {name: entry.secret for name, entry in again.entries.items()} == {
        name: keystore.get(name) for name in keystore.names()
    }


def test_the_file_is_as_specified(path: Path) -> None:  # SPEC-KEYSTORE-1
    blob = path.read_bytes()
    assert blob[:24].hex() == "666c6b6579730d0a" + "0001" + "0001" + "00000008" + "00000001" + "00000001"
    assert int.from_bytes(blob[52:56], "big") == len(blob) - HEADER_BYTES - 32
    key = Argon2id(salt=blob[24:40], length=32, iterations=1, lanes=1, memory_cost=8).derive(
        PASSWORD.encode()
    )
    content = AESGCM(key).decrypt(blob[40:52], blob[HEADER_BYTES:-32], blob[:HEADER_BYTES])
    assert cbor2.loads(content) == {"node": [1, b"secret-of-the-node-0123456789abc"]}
    assert blob[-32:] == hashlib.sha256(blob[:-32]).digest()


def test_a_keystore_of_format_version_1_still_opens(tmp_path: Path) -> None:
    """Frozen when the format was; read by hand in the test above."""
    (tmp_path / "old").write_bytes(
        bytes.fromhex(
            "666c6b6579730d0a000100010000000800000001000000019695389252e60da17a82d5c2b6ae51d6"
            "2d05e3a00b59ba71e28430360000001c9ca29e0ff9f0a864acebcc07a6c414129b693f99d4e2ade3"
            "8c8a8579ce2c8cd684f68446904ccdba9aa974dc8b15d929cef6c24a26976713852f516a"
        )
    )
    assert Keystore.open(tmp_path / "old", PASSWORD).get("node") == b"old"


def test_no_secret_is_in_the_file_or_in_a_repr(path: Path) -> None:
    keystore = Keystore.open(path, PASSWORD)
    assert b"secret-of" not in path.read_bytes()
    assert b"node" not in path.read_bytes()
    assert "secret-of" not in repr(keystore) + repr(keystore.entries)
    with pytest.raises(TypeError):
        pickle.dumps(keystore)


def test_a_wrong_password_is_told_from_damage(path: Path) -> None:  # SPEC-KEYSTORE-3
    for wrong in ("Correct horse", "correct horse ", "x"):
        with pytest.raises(KeystoreError) as refusal:
            Keystore.open(path, wrong)
        assert refusal.value.code is Code.WRONG_PASSWORD


def test_every_flipped_bit_is_damage(path: Path) -> None:  # SPEC-KEYSTORE-3
    blob = path.read_bytes()
    for position in range(len(blob)):
        path.write_bytes(blob[:position] + bytes([blob[position] ^ 0x10]) + blob[position + 1 :])
        with pytest.raises(KeystoreError) as refusal:
            Keystore.open(path, PASSWORD)
        expected = Code.FORMAT_VERSION if position in (8, 9) else Code.BAD_KEYSTORE
        assert refusal.value.code is expected, position


def test_every_flipped_bit_is_refused_even_with_a_fitting_digest(path: Path) -> None:  # SPEC-KEYSTORE-2
    blob = path.read_bytes()
    for position in range(len(blob) - 32):
        path.write_bytes(redigest(blob[:position] + bytes([blob[position] ^ 1]) + blob[position + 1 :]))
        with pytest.raises(KeystoreError):
            Keystore.open(path, PASSWORD)


def test_truncated_extended_and_foreign_files_are_damage(path: Path) -> None:
    blob = path.read_bytes()
    for bad in (b"", blob[:1], blob[:HEADER_BYTES], blob[:-1], blob + b"\0", bytes(200), redigest(blob[:-1])):
        path.write_bytes(bad)
        with pytest.raises(KeystoreError) as refusal:
            Keystore.open(path, PASSWORD)
        assert refusal.value.code is Code.BAD_KEYSTORE


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(noise: bytes) -> None:
    for blob in (noise, b"flkeys\r\n" + noise, redigest(b"flkeys\r\n\0\1\0\1" + noise + bytes(32))):
        with pytest.raises(KeystoreError):
            module._parse(blob)


@pytest.mark.parametrize(
    ("memory_kib", "iterations", "lanes"),
    [
        (MEMORY_KIB_MAX + 1, 1, 1),
        (2**32 - 1, 2**32 - 1, 2**32 - 1),
        (MEMORY_KIB_MAX, 5, 1),
        (64, ITERATIONS_MAX + 1, 1),
        (1024, 1, LANES_MAX + 1),
        (15, 1, 2),
        (0, 1, 1),
        (8, 0, 1),
        (8, 1, 0),
    ],
)
def test_a_file_cannot_ask_for_unbounded_work(
    path: Path, monkeypatch: pytest.MonkeyPatch, memory_kib: int, iterations: int, lanes: int
) -> None:  # SPEC-KEYSTORE-4
    blob = path.read_bytes()
    costs = b"".join(cost.to_bytes(4, "big") for cost in (memory_kib, iterations, lanes))
    path.write_bytes(redigest(blob[:12] + costs + blob[24:]))
    monkeypatch.setattr(module, "Argon2id", None)  # It must not come to a derivation.
    with pytest.raises(KeystoreError) as refusal:
        Keystore.open(path, PASSWORD)
    assert refusal.value.code is Code.BAD_KEYSTORE


def test_a_file_that_is_too_large_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = path.stat().st_size
    monkeypatch.setattr(module, "KEYSTORE_BYTES_MAX", size)
    keystore = Keystore.open(path, PASSWORD)
    keystore.put("more", b"1")
    with pytest.raises(KeystoreError) as refusal:
        keystore.save()
    assert refusal.value.code is Code.OVERSIZED
    monkeypatch.setattr(module, "KEYSTORE_BYTES_MAX", size - 1)
    with pytest.raises(KeystoreError) as refusal:
        Keystore.open(path, PASSWORD)
    assert refusal.value.code is Code.BAD_KEYSTORE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        cbor2.dumps([1]),
        cbor2.dumps({"a": b"no kind"}),
        cbor2.dumps({"a": [9, b"unknown kind"]}),
        cbor2.dumps({"a": [1, "not bytes"]}),
        cbor2.dumps({"a": [1, 7]}),
        cbor2.dumps({1: [1, b"name"]}),
        cbor2.dumps({"": [1, b"name"]}),
        cbor2.dumps({"a": [1, b""]}),
    ],
)
def test_authentic_nonsense_is_refused(path: Path, content: bytes) -> None:
    blob = path.read_bytes()
    key = CHEAP.derive(PASSWORD, blob[24:40])
    header = blob[:52] + (len(content) + 16).to_bytes(4, "big")
    path.write_bytes(redigest(header + AESGCM(key).encrypt(blob[40:52], content, header) + bytes(32)))
    with pytest.raises(KeystoreError) as refusal:
        Keystore.open(path, PASSWORD)
    assert refusal.value.code in (Code.BAD_KEYSTORE, Code.MALFORMED)


def test_create_never_replaces_a_file(path: Path) -> None:
    blob = path.read_bytes()
    with pytest.raises(KeystoreError):
        make(path)
    assert path.read_bytes() == blob
    assert list(path.parent.iterdir()) == [path]


def test_only_the_owner_may_read_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    Keystore.open(path, PASSWORD).save()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_save_has_its_own_nonce(path: Path) -> None:
    before = path.read_bytes()
    Keystore.open(path, PASSWORD).save()
    after = path.read_bytes()
    assert before[24:40] == after[24:40]
    assert before[40:52] != after[40:52]


def test_changes_stay_in_memory_until_saved(path: Path) -> None:
    keystore = Keystore.open(path, PASSWORD)
    keystore.put("new", b"1")
    keystore.delete("node")
    assert Keystore.open(path, PASSWORD).names() == ["node"]
    keystore.save()
    assert Keystore.open(path, PASSWORD).names() == ["new"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, StorageFullError), (errno.EIO, LedgerError)])
def test_a_failed_save_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[FastLedgerError]
) -> None:  # SPEC-KEYSTORE-5
    keystore = Keystore.open(path, PASSWORD)
    blob = path.read_bytes()
    keystore.put("new", b"1")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "")

    with monkeypatch.context() as patch:
        if call == "replace":
            patch.setattr(Path, "replace", fail)
        elif call == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(os, "open", fail)
        with pytest.raises(kind) as refusal:
            keystore.save()
    assert str(path.parent) not in str(refusal.value)
    assert path.read_bytes() == blob
    assert list(path.parent.iterdir()) == [path]
    keystore.save()
    assert Keystore.open(path, PASSWORD).names() == ["new", "node"]


def test_a_failed_sync_of_the_directory_leaves_a_whole_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-KEYSTORE-5
    keystore = Keystore.open(path, PASSWORD)
    keystore.put("new", b"1")

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_sync_directory", fail)
        with pytest.raises(LedgerError):
            keystore.save()
    assert Keystore.open(path, PASSWORD).names() == ["new", "node"]
    with pytest.raises(KeystoreError):
        keystore.save()  # It cannot know which of the two files would survive a crash.


def test_the_file_is_synced_before_it_takes_its_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keystore = Keystore.open(path, PASSWORD)
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def record_sync(descriptor: int) -> None:
        order.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def record_replace(self: Path, target: Path) -> Path:
        order.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_replace)
    keystore.save()
    assert order == ["file", "replace", "directory"]


def test_saving_never_undoes_another_save(path: Path) -> None:
    one, two = Keystore.open(path, PASSWORD), Keystore.open(path, PASSWORD)
    one.put("one", b"1")
    one.save()
    two.put("two", b"2")
    with pytest.raises(KeystoreError) as refusal:
        two.save()
    assert refusal.value.code is Code.BAD_KEYSTORE
    assert Keystore.open(path, PASSWORD).names() == ["node", "one"]
    one.save()


def test_a_password_can_be_changed(path: Path) -> None:
    keystore = Keystore.open(path, PASSWORD)
    salt = path.read_bytes()[24:40]
    keystore.change_password("new", kdf_params=KdfParams(16, 2, 2), allow_weak_kdf=True)
    assert path.read_bytes()[24:40] != salt
    with pytest.raises(KeystoreError) as refusal:
        Keystore.open(path, PASSWORD)
    assert refusal.value.code is Code.WRONG_PASSWORD
    again = Keystore.open(path, "new")
    assert again.names() == ["node"]
    assert again.kdf_params == KdfParams(16, 2, 2)
    keystore.put("later", b"1")
    keystore.save()
    assert Keystore.open(path, "new").names() == ["later", "node"]


def test_a_password_is_text_however_it_is_typed(tmp_path: Path) -> None:
    make(tmp_path / "keys", "zo\u00eb")
    assert Keystore.open(tmp_path / "keys", "zoe\u0308").names() == []


@pytest.mark.parametrize("password", ["", "x" * 1025, "\ud800"])
def test_impossible_passwords_are_refused(tmp_path: Path, password: str) -> None:
    with pytest.raises(KeystoreError) as refusal:
        make(tmp_path / "keys", password)
    assert refusal.value.code is Code.MALFORMED
    assert list(tmp_path.iterdir()) == []


def test_weak_costs_need_consent(path: Path, tmp_path: Path) -> None:  # SPEC-KEYSTORE-4
    for weak in (CHEAP, KdfParams(16 * 1024, 64), KdfParams(64 * 1024, 1)):
        with pytest.raises(KeystoreError):
            Keystore.create(tmp_path / "new", PASSWORD, kdf_params=weak)
        with pytest.raises(KeystoreError):
            Keystore.open(path, PASSWORD).change_password("new", kdf_params=weak)
    assert KdfParams(64 * 1024, 3, 1) == DEFAULT_KDF
    assert not DEFAULT_KDF.is_weak


def test_missing_files_and_entries_are_not_found(path: Path, tmp_path: Path) -> None:
    keystore = Keystore.open(path, PASSWORD)
    for call in (
        lambda: Keystore.open(tmp_path / "none", PASSWORD),
        lambda: keystore.get("none"),
        lambda: keystore.get("node", EntryKind.KEM_KEY),
        lambda: keystore.delete("none"),
    ):
        with pytest.raises(KeystoreError) as refusal:
            call()
        assert refusal.value.code is Code.NOT_FOUND
    with pytest.raises(LedgerError):
        Keystore.open(tmp_path, PASSWORD)


def test_impossible_entries_are_refused(path: Path) -> None:
    keystore = Keystore.open(path, PASSWORD)
    for name, secret in (
        ("", b"1"),
        ("x" * (KEYSTORE_NAME_BYTES_MAX + 1), b"1"),
        ("\ud800", b"1"),
        ("a", b""),
        ("a", bytes(KEYSTORE_ENTRY_BYTES_MAX + 1)),
    ):
        with pytest.raises(KeystoreError) as refusal:
            keystore.put(name, secret)
        assert refusal.value.code is Code.MALFORMED
    keystore.put("x" * KEYSTORE_NAME_BYTES_MAX, bytes(KEYSTORE_ENTRY_BYTES_MAX))


def test_entries_are_read_only(path: Path) -> None:
    entries = Keystore.open(path, PASSWORD).entries
    with pytest.raises(TypeError):
        entries["node"] = entries["node"]  # type: ignore[index]
