"""What operations on a ledger report, whether it lies in a directory or behind a node: pure values."""

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

PROBLEMS_MAX = 100


@dataclass
class VerifyReport:
    """What a verification looked at, and everything that it found wrong.

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
        """Whether nothing is wrong."""
        return not self.problems

    def note(self, problem: str) -> None:
        """Keeps a problem, up to a bound."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


class BackupReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did: files in the backup and their bytes, how many of the bytes were copied, objects dropped."""

    height: int
    block_id: bytes
    state_root: bytes
    files: int
    total_bytes: int
    copied_bytes: int
    dropped_objects: int


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """The ledger that was made; ``verified`` is None where that was not asked for."""

    chain_id: bytes
    height: int
    block_id: bytes
    state_root: bytes
    transactions: int
    has_node_key: bool
    verified: VerifyReport | None


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """What a snapshot is of and how large it is; ``root`` commits to all of it."""

    chain_id: bytes
    height: int
    block_id: bytes
    state_root: bytes
    root: bytes
    chunks: int
    entries: int


@dataclass(frozen=True, slots=True)
class PruneReport:
    """``freed_bytes`` went back to the file system; blocks below ``first_height`` are gone."""

    first_height: int
    freed_bytes: int
    snapshot_height: int | None


@dataclass(frozen=True, slots=True)
class RepairReport:
    """``damaged_places`` were found; ``fetched`` blocks came from elsewhere; the log now ends at ``height``."""

    damaged_places: int
    kept: int
    fetched: int
    height: int
    replaced: bool


class ExportReport(NamedTuple):
    """What was written."""

    from_height: int
    to_height: int
    blocks: int
    transactions: int
    envelopes: int
    byte_count: int


class Collected(NamedTuple):
    """What a collection took."""

    envelopes: int
    byte_count: int
