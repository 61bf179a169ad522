"""What a rule sees of the state, and what it leaves behind.

State is a map from short byte keys to MessagePack-encoded structs. A :class:`View` stacks the writes of the running
transaction over those of the running block over everything before, so that a refused transaction leaves nothing
and a dropped block is a dropped dict. No rule can learn the wall clock: time is the block's (SPEC-STATE-1).
"""

import hashlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from fastledger.errors import Code

Writes: TypeAlias = dict[bytes, bytes | None]
Lookup: TypeAlias = Callable[[bytes], bytes | None]

_U32 = struct.Struct(">I")
_encode = msgspec.msgpack.Encoder().encode


class Entity(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all state values: a MessagePack array of the fields in order, integers in shortest form."""


EntityT = TypeVar("EntityT", bound=Entity)


class Refusal(Exception):
    """Raised by a rule; its code becomes the transaction's result."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.slug)
        self.code = code


class Table(Generic[EntityT]):
    """A family of state keys ``prefix || id`` whose values are one entity type."""

    __slots__ = ("decode", "prefix")

    def __init__(self, prefix: bytes, entity: type[EntityT]) -> None:
        self.prefix = prefix
        self.decode: Callable[[bytes], EntityT] = msgspec.msgpack.Decoder(entity).decode


class View:
    """Reads through to ``base`` and collects the block's writes in ``writes``."""

    __slots__ = ("_base", "_decoded", "_journal", "writes")

    def __init__(self, base: Lookup) -> None:
        self._base = base
        self.writes: Writes = {}
        self._journal: Writes = {}
        # Entries as of the last commit: a block's transactions share signers, folders and consents.
        self._decoded: dict[bytes, Any] = {}

    def remove(self, table: Table[EntityT], key: bytes) -> None:
        """Removes the entry ``key`` of ``table``."""
        self._journal[table.prefix + key] = None

    def commit(self) -> None:
        """Keeps what the running transaction wrote."""
        if self._journal:
            self.writes.update(self._journal)
            for key in self._journal:
                self._decoded.pop(key, None)
            self._journal = {}

    def rollback(self) -> None:
        """Forgets what the running transaction wrote."""
        if self._journal:
            self._journal = {}

    def load(self, table: Table[EntityT], key: bytes) -> EntityT | None:
        """The entry ``key`` of ``table``."""
        full_key = table.prefix + key
        if full_key in self._journal:
            raw = self._journal[full_key]
            return None if raw is None else table.decode(raw)
        if full_key in self._decoded:
            entry: EntityT | None = self._decoded[full_key]
            return entry
        raw = self.writes[full_key] if full_key in self.writes else self._base(full_key)
        entry = self._decoded[full_key] = None if raw is None else table.decode(raw)
        return entry

    def store(self, table: Table[EntityT], key: bytes, value: EntityT) -> None:
        """Sets the entry ``key`` of ``table``."""
        self._journal[table.prefix + key] = _encode(value)


def write_set_digest(writes: Mapping[bytes, bytes | None]) -> bytes:
    """SHA-256 over the writes in key order: u32 key length, key, u32 value length + 1 (0: deleted), value (BE)."""
    pack = _U32.pack
    parts = [
        pack(len(key)) + key + (b"\0\0\0\0" if value is None else pack(len(value) + 1) + value)
        for key, value in sorted(writes.items())
    ]
    return hashlib.sha256(b"".join(parts)).digest()


def next_state_root(previous: bytes, writes: Mapping[bytes, bytes | None]) -> bytes:
    """The state root after a block: SHA-256(previous root || digest of its write set) (SPEC-STATE-2)."""
    return hashlib.sha256(previous + write_set_digest(writes)).digest()
