"""The ledger directory: its layout and its exclusive lock (signatures first)."""

from pathlib import Path
from typing import Self

from fastledger.storage.files import OsFiles


class LedgerDirectory:
    """The paths of one ledger; holds the lock while open."""

    root: Path
    genesis_path: Path  # genesis.cbor
    node_key_path: Path  # node.key
    log_path: Path
    index_path: Path
    blobs_path: Path

    @classmethod
    def create(cls, root: Path, genesis: bytes, files: OsFiles | None = None) -> Self:
        """Makes the directory tree, writes genesis.cbor (synced) and takes the lock.

        InputError if a ledger is already there.
        """

    @classmethod
    def open(cls, root: Path, files: OsFiles | None = None) -> Self:
        """Takes the lock. LedgerLockedError names the pid that holds it; NotFoundError if there is no ledger."""

    def read_genesis(self) -> bytes: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
