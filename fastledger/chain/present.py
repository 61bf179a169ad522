"""The part of the façade that reads single entities of the durable state. All may be called from any thread."""

from typing import TypeVar

import msgspec

from fastledger.chain.store import ChainStore
from fastledger.errors import CorruptionError, NotFoundError
from fastledger.state.entities import (
    ACCOUNTS,
    CONSENTS,
    FOLDERS,
    IDENTITIES,
    KEM_KEYS,
    KEYS,
    RECORDS,
    VERSIONS,
    Consent,
    Folder,
    Identity,
    Record,
    RecordVersion,
    version_key,
)
from fastledger.state.view import Entity, Table
from fastledger.storage.directory import LedgerDirectory

EntityT = TypeVar("EntityT", bound=Entity)


class Present:
    """What :class:`Ledger` knows of the present state."""

    _store: ChainStore
    _directory: LedgerDirectory

    def _entity(self, table: Table[EntityT], key: bytes) -> EntityT:
        with self._store.snapshot() as snapshot:
            raw = snapshot.get_state(table.prefix + key)
        if raw is None:
            raise NotFoundError(f"nothing stands under {key.hex()}")
        try:
            return table.decode(raw)
        except (msgspec.MsgspecError, ValueError):
            path = str(self._directory.index_path)
            raise CorruptionError(f"the state under {key.hex()} is damaged: reindex", path=path) from None

    def identity_of(self, key: bytes) -> bytes:
        """The identity id that a 33-byte key signs for; raises ``NotFoundError``, as all below do."""
        return self._entity(KEYS, key).identity

    def identity(self, identity: bytes) -> Identity:
        """Role, endorsement and key of an identity."""
        return self._entity(IDENTITIES, identity)

    def kem_key(self, identity: bytes) -> bytes:
        """The public key under which keys are wrapped to an identity."""
        return self._entity(KEM_KEYS, identity).kem

    def folder(self, folder: bytes) -> Folder:
        """Owner and key epoch of a folder."""
        return self._entity(FOLDERS, folder)

    def record(self, record: bytes) -> Record:
        """Folder and version of a record, and whether it was erased."""
        return self._entity(RECORDS, record)

    def record_version(self, record: bytes, version: int = 0) -> RecordVersion:
        """Digest, size and author of one version's envelope; 0 is the present version."""
        present = self.record(record)
        if version in (0, present.version):
            return present.present
        if not 0 < version < present.version:
            raise NotFoundError(f"record {record.hex()} has no version {version}")
        return self._entity(VERSIONS, version_key(record, version))

    def consent(self, consent: bytes) -> Consent:
        """A consent and whether it was revoked."""
        return self._entity(CONSENTS, consent)

    def balance(self, proposer: bytes) -> int:
        """The credits that the blocks of a proposer's 33-byte key earned; 0 for a key that earned none."""
        try:
            return self._entity(ACCOUNTS, proposer).balance
        except NotFoundError:
            return 0
