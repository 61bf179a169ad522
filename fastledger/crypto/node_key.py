"""The node's signing key on disk: sealed under a password, or plain in a file that only its owner can read."""

import os
from pathlib import Path

from fastledger.crypto.keystore import Keystore
from fastledger.crypto.signing import SigningKey
from fastledger.errors import Code, KeystoreError

_PLAIN_HEAD = b"fastledger-node-key-v1\n"
_ENTRY = "node"


def save_node_key(path: Path, key: SigningKey, password: str | None) -> None:
    """Writes the key to a new file with mode 0600, sealed if there is a password.

    Raises KeystoreError or ``FileExistsError`` where a file stands already.
    """
    if password is not None:
        keystore = Keystore.create(path, password)
        keystore.put(_ENTRY, key.secret_bytes())
        keystore.save()
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(_PLAIN_HEAD + key.secret_bytes().hex().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def is_sealed(path: Path) -> bool:
    """Whether a password is needed to read the key."""
    with path.open("rb") as file:
        return file.read(len(_PLAIN_HEAD)) != _PLAIN_HEAD


def load_node_key(path: Path, password: str | None) -> SigningKey:
    """Reads the key; raises ``KeystoreError`` where it is absent, damaged, or the password is wrong or missing."""
    try:
        head = path.read_bytes()[:256]
    except FileNotFoundError:
        raise KeystoreError("the ledger keeps no node key: pass it in") from None
    if not head.startswith(_PLAIN_HEAD):
        if password is None:
            raise KeystoreError("the node key is sealed: a password is needed", code=Code.WRONG_PASSWORD)
        return SigningKey.from_bytes(Keystore.open(path, password).get(_ENTRY))
    try:
        return SigningKey.from_bytes(bytes.fromhex(head[len(_PLAIN_HEAD) :].decode("ascii")))
    except (ValueError, UnicodeDecodeError):
        raise KeystoreError("the node key file is damaged") from None
