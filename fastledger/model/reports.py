"""The reports of operations on a ledger, be it in a directory or behind a node: pure values."""

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from fastledger.reprs import BriefRepr, brief_fields

PROBLEMS_MAX = 100


@dataclass
class VerifyReport:
    """The extent of a verification, and everything that it found wrong.

    ``height`` is how far it reached; ``first_height`` is more than 0 on a pruned ledger, where the blocks before the
    snapshot's are checked for all but the state that they led to.
    """

    height: int = -1
    first_height: int = 0
    blocks: int = 0
    transactions: int = 0
    log_bytes: int = 0
    blobs: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the verification found nothing wrong."""
        return not self.problems

    def note(self, problem: str) -> None:
        """Adds a problem; those beyond the first PROBLEMS_MAX are dropped."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


class BackupReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a backup: files and bytes in it, how many bytes were copied, how many objects dropped."""

    height: int
    block_id: bytes
    state_root: bytes
    files: int
    total_bytes: int
    copied_bytes: int
    dropped_objects: int

    def __repr__(self) -> str:
        return brief_fields(self, self.__struct_fields__)


@dataclass(frozen=True, slots=True, repr=False)
class RestoreReport(BriefRepr):
    """The ledger that a restore made; ``verified`` is None where no verification was asked for."""

    chain_id: bytes
    height: int
    block_id: bytes
    state_root: bytes
    transactions: int
    has_node_key: bool
    verified: VerifyReport | None


@dataclass(frozen=True, slots=True, repr=False)
class SnapshotReport(BriefRepr):
    """The state that a snapshot is of, and its size; ``root`` commits to all of it."""

    chain_id: bytes
    height: int
    block_id: bytes
    state_root: bytes
    root: bytes
    chunks: int
    entries: int


@dataclass(frozen=True, slots=True)
class PruneReport:
    """The result of pruning: blocks below ``first_height`` are gone, ``freed_bytes`` are free on the file system."""

    first_height: int
    freed_bytes: int
    snapshot_height: int | None


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The result of a repair: ``damaged_places`` were found, ``fetched`` blocks came from a source.

    ``kept`` blocks were whole; the log now ends at ``height``.
    """

    damaged_places: int
    kept: int
    fetched: int
    height: int
    replaced: bool


class ExportReport(NamedTuple):
    """The blocks, transactions and envelopes that an export wrote."""

    from_height: int
    to_height: int
    blocks: int
    transactions: int
    envelopes: int
    byte_count: int


class Collected(NamedTuple):
    """The number and bytes of the envelopes that a collection erased."""

    envelopes: int
    byte_count: int
