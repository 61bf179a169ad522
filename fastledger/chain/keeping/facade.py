"""The part of the façade that operators use: verify, snapshot, prune, backup, export, collect.

All may be called from any thread while others submit; one runs at a time. All take ``progress``, called with (stage,
done, total); ``cancel``, an event that ends them with ``OperationCancelledError``; and a rate in bytes a second.
"""

import threading
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import BinaryIO

from fastledger.chain.keeping.keeper import Control, Keeper
from fastledger.chain.keeping.snapshots import snapshot_report
from fastledger.model.export import BlockRange
from fastledger.model.reports import BackupReport, ExportReport, PruneReport, SnapshotReport, VerifyReport
from fastledger.pace import Progress


class Keeping:
    """The operations on a :class:`Ledger` for those who run it."""

    _keeper: Keeper
    _forget_blocks: Callable[[], None]
    _now_ms: Callable[[], int]

    def verify(
        self,
        progress: Progress | None = None,
        *,
        online: bool = True,
        rate_bytes_per_second: int | None = None,
        cancel: threading.Event | None = None,
    ) -> VerifyReport:
        """Re-checks every byte, signature and root from disk, and returns the findings.

        With ``online`` submissions go on meanwhile, and what is durable at the beginning is checked; without, they wait
        until it is over, and the end of the log is checked as well. ``rate_bytes_per_second`` bounds what it reads.
        ``progress`` is called with (stage, done, total). Setting the event ``cancel`` ends it with
        ``OperationCancelledError``.
        """
        return self._keeper.verify(Control(progress, cancel, rate_bytes_per_second), online=online)

    def snapshot(
        self,
        target: str | PurePath | None = None,
        *,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
        cancel: threading.Event | None = None,
    ) -> SnapshotReport:
        """Writes the whole state at a height into the directory ``target``, while submissions go on.

        ``target`` is new or empty; None keeps the snapshot in the ledger's own directory. Returns the height, what the
        snapshot commits to and its size. Raises ``InputError`` where the directory is not empty.
        ``progress`` is called with (stage, done, total). Setting the event ``cancel`` ends it with
        ``OperationCancelledError``.
        """
        control = Control(progress, cancel, rate_bytes_per_second)
        return snapshot_report(self._keeper.snapshot(None if target is None else Path(target), control))

    def prune(
        self,
        *,
        before_height: int | None = None,
        keep_blocks: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
        cancel: threading.Event | None = None,
    ) -> PruneReport:
        """Gives back the whole segments below a height (or all but the newest blocks), behind a kept snapshot.

        One of ``before_height`` and ``keep_blocks`` is given; ``InputError`` with ``BAD_QUERY`` otherwise. State,
        queries' terms, verdicts on retries and envelopes stay; the pruned blocks and their transactions do not, here
        (SPEC-PRUNE-1..5).
        ``progress`` is called with (stage, done, total). Setting the event ``cancel`` ends it with
        ``OperationCancelledError``.
        """
        control = Control(progress, cancel, rate_bytes_per_second)
        report = self._keeper.prune(before_height, keep_blocks, control)
        self._forget_blocks()
        return report

    def backup(
        self,
        destination: str | PurePath,
        *,
        include_node_key: bool = False,
        include_snapshot: bool = False,
        recheck: bool = False,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
        cancel: threading.Event | None = None,
    ) -> BackupReport:
        """Writes a consistent backup of this moment while submissions go on.

        Into an older backup it writes what is new. ``include_snapshot`` makes restoring faster and the backup
        larger; ``recheck`` reads again what the backup has already. Envelopes that were erased leave the backup with
        this run. ``restore_backup`` restores it.
        ``progress`` is called with (stage, done, total). Setting the event ``cancel`` ends it with
        ``OperationCancelledError``.
        """
        return self._keeper.backup(
            Path(destination),
            Control(progress, cancel, rate_bytes_per_second),
            include_node_key=include_node_key,
            include_snapshot=include_snapshot,
            recheck=recheck,
            created_ms=self._now_ms(),
        )

    def export_ndjson(
        self,
        out: BinaryIO,
        *,
        from_height: int | None = None,
        to_height: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
        cancel: threading.Event | None = None,
    ) -> ExportReport:
        """Writes a line of JSON for every durable transaction of a range of heights, both ends included.

        Raises ``NotFoundError``, with the code PRUNED where the range begins before what is kept, and ``InputError``
        where it has no block.
        ``progress`` is called with (stage, done, total). Setting the event ``cancel`` ends it with
        ``OperationCancelledError``.
        """
        control = Control(progress, cancel, rate_bytes_per_second)
        return self._keeper.export_ndjson(out, BlockRange(from_height, to_height), control)

    def export_blocks(
        self,
        out: BinaryIO,
        *,
        from_height: int | None = None,
        to_height: int | None = None,
        with_blobs: bool = False,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
        cancel: threading.Event | None = None,
    ) -> ExportReport:
        """Writes a self-describing block file: genesis document, blocks, and (``with_blobs``) their envelopes.

        ``import_blocks`` reads it. Raises as :meth:`export_ndjson` does.
        ``progress`` is called with (stage, done, total). Setting the event ``cancel`` ends it with
        ``OperationCancelledError``.
        """
        control = Control(progress, cancel, rate_bytes_per_second)
        block_range = BlockRange(from_height, to_height)
        return self._keeper.export_blocks(out, block_range, control, with_blobs=with_blobs)
