"""The genesis document: what all nodes of a chain agree on before the first block (SPEC-GEN-1).

Deterministic CBOR map; ``chain_id`` is the first 8 bytes of its SHA-256 and stands in every transaction, so that
nothing signed for one chain is valid on another.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastledger.crypto.hpke import public_key_suite
from fastledger.errors import Code, EnvelopeError, InputError
from fastledger.model.block import ZERO32, Block, Header, HeaderBody
from fastledger.model.codec import decode, encode
from fastledger.version import GENESIS_FORMAT_VERSION

CHAIN_ID_BYTES = 8
ENGINES = ("solo",)
EMPTY_ROOT = hashlib.sha256(b"").digest()


def _bad_genesis(message: str) -> InputError:
    return InputError(message, code=Code.BAD_GENESIS)


@dataclass(frozen=True)
class Authority:
    """A key that is a regulator from the first block on; ``kem`` is its key-encapsulation public key."""

    key: bytes
    kem: bytes


@dataclass(frozen=True)
class Genesis:
    """The agreed beginning. ``proposers`` are the 33-byte keys that may seal blocks; ``salt`` makes chains differ."""

    created_ms: int
    proposers: tuple[bytes, ...]
    authorities: tuple[Authority, ...] = ()
    engine: str = "solo"
    salt: bytes = b""

    @classmethod
    def create(
        cls,
        *,
        created_ms: int,
        proposers: tuple[bytes, ...],
        authorities: tuple[Authority, ...] = (),
        engine: str = "solo",
    ) -> "Genesis":
        """A new chain with a random salt."""
        return cls(created_ms, proposers, authorities, engine, os.urandom(16)).checked()

    def checked(self) -> "Genesis":
        """Itself, where every field has its shape; raises ``InputError`` with ``BAD_GENESIS``."""
        if self.engine not in ENGINES:
            raise _bad_genesis(f"engine is one of {', '.join(ENGINES)}")
        if type(self.created_ms) is not int or not 0 <= self.created_ms < 1000 * 2**32:
            raise _bad_genesis("created_ms is a time in milliseconds whose seconds fit a header's 32 bits")
        if not self.proposers or any(len(key) != 33 for key in self.proposers):
            raise _bad_genesis("proposers are one or more 33-byte keys")
        for authority in self.authorities:
            if len(authority.key) != 33:
                raise _bad_genesis("an authority has a 33-byte key")
            try:
                public_key_suite(authority.kem)
            except EnvelopeError:
                raise _bad_genesis("an authority has a KEM public key") from None
        if len({authority.key for authority in self.authorities}) != len(self.authorities):
            raise _bad_genesis("authorities differ from one another")
        if len(self.salt) != 16:
            raise _bad_genesis("salt has 16 bytes")
        return self

    @cached_property
    def encoded(self) -> bytes:
        """The document's bytes, as kept in ``genesis.cbor``."""
        return encode(
            {
                "version": GENESIS_FORMAT_VERSION,
                "created_ms": self.created_ms,
                "engine": self.engine,
                "proposers": list(self.proposers),
                "authorities": [[authority.key, authority.kem] for authority in self.authorities],
                "salt": self.salt,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> "Genesis":
        """The document of ``data``; raises ``InputError`` with ``BAD_GENESIS`` or a codec error."""
        value = decode(data, what="genesis")
        keys = {"version", "created_ms", "engine", "proposers", "authorities", "salt"}
        if not isinstance(value, dict) or set(value) != keys:
            raise _bad_genesis("a genesis document has other fields")
        if type(value["version"]) is not int or value["version"] != GENESIS_FORMAT_VERSION:
            raise _bad_genesis(f"not a genesis document of format {GENESIS_FORMAT_VERSION}")
        return cls(
            value["created_ms"],
            tuple(_byte_strings(value["proposers"])),
            tuple(Authority(*_byte_strings(pair, 2)) for pair in _list(value["authorities"])),
            str(value["engine"]),
            _byte_strings([value["salt"]])[0],
        ).checked()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the document."""
        return hashlib.sha256(self.encoded).digest()

    @property
    def chain_id(self) -> bytes:
        """The first 8 bytes of the digest."""
        return self.digest[:CHAIN_ID_BYTES]

    def block(self, state_root: bytes) -> Block:
        """Block 0: no transactions, no seal; its ``seal_ref`` is the digest of this document."""
        body = HeaderBody(
            height=0,
            time_ms=self.created_ms,
            tx_root=EMPTY_ROOT,
            result_root=EMPTY_ROOT,
            state_root=state_root,
            history_root=EMPTY_ROOT,
            proposer=self.proposers[0],
            seal_ref=self.digest,
        )
        header = Header(ZERO32, body.commitment, self.created_ms // 1000)
        return Block(header, body, b"", b"", b"", b"")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _bad_genesis("expected an array")
    return value


def _byte_strings(value: Any, count: int | None = None) -> list[bytes]:
    items = _list(value)
    if not all(isinstance(item, bytes) for item in items) or (count is not None and len(items) != count):
        raise _bad_genesis("expected an array of byte strings")
    return items
