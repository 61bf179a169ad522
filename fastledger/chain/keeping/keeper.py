"""The operator's operations on an open ledger: snapshots, pruning, backups, verification (SPEC-SNAP, -PRUNE, -BAK).

One such operation runs at a time, beside submissions, which it holds for moments only. All take a ``progress``
callback (stage, done, total), a ``cancel`` event and a rate. Closing the ledger ends the one that is running.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import BinaryIO

from fastledger.chain.envelopes import Envelopes
from fastledger.chain.execution.executor import CHECKPOINT_KEY, Position
from fastledger.chain.execution.store import ChainStore
from fastledger.chain.keeping.backup import BackupManifest, BackupRun, Pinned
from fastledger.chain.keeping.export import Exporter
from fastledger.chain.keeping.snapshots import (
    iter_kept_files,
    keep_snapshot,
    kept_snapshots,
    starting_snapshot,
    write_snapshot,
)
from fastledger.chain.keeping.verify import Verification
from fastledger.chain.stages import Stages
from fastledger.consensus.engine import Engine
from fastledger.errors import Code, InputError, NotFoundError
from fastledger.model.export import BlockRange
from fastledger.model.genesis import Genesis
from fastledger.model.reports import BackupReport, ExportReport, PruneReport, VerifyReport
from fastledger.pace import Pace, Progress
from fastledger.state.registry import RulesAt
from fastledger.storage.blobs.store import BlobStore
from fastledger.storage.directory import LedgerDirectory
from fastledger.storage.index import Index
from fastledger.storage.log import SegmentLog
from fastledger.storage.snapshot import Manifest, SnapshotFiles
from fastledger.subjects.record import RECORDS, Record
from fastledger.version import BACKUP_FORMAT_VERSION, VERSION

_WAIT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Control:
    """The progress callback, cancellation and rate of one operation, of which a :class:`Pace` is made."""

    progress: Progress | None = None
    cancel: threading.Event | None = None
    rate_bytes_per_second: int | None = None


class Keeper:
    """The operations over the parts of one open ledger."""

    def __init__(
        self,
        *,
        directory: LedgerDirectory,
        genesis: Genesis,
        engine: Engine,
        log: SegmentLog,
        index: Index,
        blobs: BlobStore,
        store: ChainStore,
        pipeline: Stages,
        envelopes: Envelopes,
        rules_at: RulesAt,
    ) -> None:
        """``rules_at(height)`` is the rule set in force at a height of this chain."""
        self._rules_at = rules_at
        self._directory = directory
        self._genesis = genesis
        self._engine = engine
        self._log = log
        self._index = index
        self._blobs = blobs
        self._store = store
        self._pipeline = pipeline
        self._envelopes = envelopes
        self._closing = threading.Event()
        self._running = threading.Lock()

    @contextmanager
    def operation(self, control: Control) -> Iterator[Pace]:
        """Waits until no other operation runs, and yields the pace of this one for the length of the block."""
        pace = Pace(
            progress=control.progress,
            cancel=control.cancel,
            closing=self._closing,
            rate_bytes_per_second=control.rate_bytes_per_second,
        )
        while not self._running.acquire(timeout=_WAIT_SECONDS):
            pace.check()
        try:
            pace.check()
            # What is being read, copied or checked is not collected meanwhile.
            with self._envelopes.quiet(pace.check):
                yield pace
        finally:
            self._running.release()

    def close(self) -> None:
        """Ends the running operation and lets none begin: what it reads must not be closed under it."""
        self._closing.set()
        self._running.acquire()

    # Verifying.

    def verify(self, control: Control, *, online: bool) -> VerifyReport:
        """Re-checks the ledger from disk, for :meth:`Ledger.verify`."""
        with self.operation(control) as pace:
            run = Verification(
                self._directory,
                self._genesis,
                self._engine,
                self._log,
                self._blobs,
                pace,
                self._record_now,
                self._rules_at,
            )
            if online:
                self._verify_online(run)
            else:
                with self._pipeline.paused():
                    self._verify_paused(run)
            return run.report

    def _verify_paused(self, run: Verification) -> None:
        self._pipeline.checkpoint_paused()
        run.check_log(self._log.pin(), online=False)
        run.check_blobs()
        with run.fresh_chain() as fresh:
            # Beyond a bad block nothing is known that index or records could be held against.
            if not fresh.check_chain(self._log.end.height):
                return
            with self._index.snapshot() as view:
                fresh.compare(view)
            with fresh.index.snapshot() as view:
                run.check_records(view)

    def _verify_online(self, run: Verification) -> None:
        with self._pipeline.paused():
            pin = self._log.pin()
        run.check_log(pin, online=True)
        run.check_blobs()
        with run.fresh_chain() as fresh:
            if not fresh.check_chain(pin.last.height):
                return
            self._pipeline.checkpoint_behind()  # so that little is left to write while submissions wait
            with self._pipeline.paused():
                self._pipeline.checkpoint_paused()
                height = self._log.pin().last.height
                # Of this checkpoint: taken while no other can be written.
                view = self._index.reader()
            try:
                if not fresh.check_chain(height):
                    return
                fresh.compare(view)
            finally:
                view.close()
            with fresh.index.snapshot() as fresh_view:
                run.check_records(fresh_view)

    def _record_now(self, record: bytes) -> Record | None:
        with self._store.snapshot() as snapshot:
            raw = snapshot.get_state(RECORDS.prefix + record)
        return None if raw is None else RECORDS.decode(raw)

    # Snapshots and pruning.

    def snapshot(self, target: Path | None, control: Control) -> Manifest:
        """Writes a snapshot to ``target`` or keeps it (None), for :meth:`Ledger.snapshot`."""
        with self.operation(control) as pace:
            return self._keep_snapshot(pace) if target is None else self._write_snapshot(target, pace)

    def _write_snapshot(self, target: Path, pace: Pace) -> Manifest:
        self._pipeline.checkpoint_behind()
        files = SnapshotFiles(target)
        existed = target.is_dir()
        if existed and any(target.iterdir()):
            raise InputError("the place for the snapshot is not empty")
        try:
            with self._index.snapshot(whole=True) as view:
                return write_snapshot(view, self._genesis.chain_id, files, pace)
        except BaseException:
            rmtree(target, ignore_errors=True)
            if existed:
                target.mkdir()
            raise

    def _keep_snapshot(self, pace: Pace) -> Manifest:
        with self._directory.workspace() as folder:
            manifest = self._write_snapshot(folder / "snapshot", pace)
            written = SnapshotFiles(folder / "snapshot")
            for number in range(len(manifest.chunks)):
                written.chunk(manifest, number)
            keep_snapshot(self._directory, folder / "snapshot", manifest)
        return manifest

    def prune(self, before_height: int | None, keep_blocks: int | None, control: Control) -> PruneReport:
        """Unlinks old segments behind a kept snapshot, for :meth:`Ledger.prune`."""
        if (before_height is None) == (keep_blocks is None):
            raise InputError("either a height or a number of blocks to keep is given", code=Code.BAD_QUERY)
        if keep_blocks is not None:
            if keep_blocks < 1:
                raise InputError("at least one block is kept", code=Code.BAD_QUERY)
            before_height = self._store.durable.height + 1 - keep_blocks
        with self.operation(control) as pace:
            return self._prune(min(before_height or 0, self._store.durable.height), pace)

    def _prune(self, before_height: int, pace: Pace) -> PruneReport:
        first_height = self._log.first_height
        entry = None
        if before_height > first_height:
            with self._store.snapshot() as snapshot:
                entry = snapshot.block_entry(before_height)
        if entry is None or entry.ref.segment <= self._log.pin().segments[0]:
            return PruneReport(first_height, 0, None)
        # In this order, each step durable before the next: whatever a crash leaves, what is still in the log goes
        # on from an index or a snapshot that is there.
        manifest = self._keep_snapshot(pace)
        self._index.sync()
        pace.check()
        freed = self._log.prune(entry.ref)
        freed += self._drop_snapshots(manifest.height)
        return PruneReport(self._log.first_height, freed, manifest.height)

    def _drop_snapshots(self, kept_height: int) -> int:
        """Removes the kept snapshots but one; returns their bytes."""
        freed = 0
        for height, path in kept_snapshots(self._directory):
            if height != kept_height:
                freed += sum(entry.stat().st_size for entry in path.iterdir())
                # Its manifest first: half a snapshot is none.
                (path / "manifest.cbor").unlink(missing_ok=True)
                rmtree(path, ignore_errors=True)
        return freed

    # Backups.

    def backup(
        self,
        destination: Path,
        control: Control,
        *,
        include_node_key: bool,
        include_snapshot: bool,
        recheck: bool,
        created_ms: int,
    ) -> BackupReport:
        """Writes a backup to ``destination``, for :meth:`Ledger.backup`; ``created_ms`` is its time (UTC)."""
        with self.operation(control) as pace:
            if destination.resolve().is_relative_to(self._directory.root.resolve()):
                raise InputError("a backup inside the ledger's own directory is none")
            if include_snapshot:
                manifest = self._keep_snapshot(pace)
                self._drop_snapshots(manifest.height)
            run = BackupRun(self._directory.root, destination, self._genesis.chain_id, pace, recheck=recheck)
            try:
                return self._run_backup(run, created_ms, include_node_key=include_node_key)
            finally:
                run.close()

    def _run_backup(self, run: BackupRun, created_ms: int, *, include_node_key: bool) -> BackupReport:
        run.copy_envelopes(self._blobs)
        with self._pipeline.paused():
            pinned = self._pin()
            run.copy_last_envelopes(self._blobs)
        run.copy_log(self._log, pinned.log)
        run.add_file(self._directory.genesis_path)
        snapshot_height = self._add_snapshot(run)
        if include_node_key and self._directory.node_key_path.exists():
            run.add_file(self._directory.node_key_path)
        first_height = self._log.first_height
        dropped = run.finish(
            BackupManifest(
                format=BACKUP_FORMAT_VERSION,
                release=VERSION,
                chain_id=self._genesis.chain_id.hex(),
                height=pinned.height,
                block_id=pinned.block_id.hex(),
                state_root=pinned.state_root.hex(),
                transactions=pinned.transactions,
                first_height=first_height,
                snapshot_height=snapshot_height,
                created_ms=created_ms,
                files=run.entries,
            )
        )
        return BackupReport(
            height=pinned.height,
            block_id=pinned.block_id,
            state_root=pinned.state_root,
            files=len(run.entries),
            total_bytes=sum(file.data_bytes for file in run.entries),
            copied_bytes=run.objects.copied_bytes,
            dropped_objects=dropped,
        )

    def _pin(self) -> Pinned:
        """Returns the ledger's state at this moment, for a caller that holds ``paused``."""
        durable, pin = self._store.durable, self._log.pin()
        return Pinned(
            log=pin,
            height=durable.height,
            block_id=durable.block_id,
            state_root=self.state_root(),
            transactions=durable.next_seq,
        )

    def state_root(self) -> bytes:
        """Returns the state root after the newest durable block.

        It is the checkpoint's where the log holds no block yet.
        """
        with self._store.snapshot() as snapshot:
            raw = snapshot.meta(CHECKPOINT_KEY)
        if raw is None:
            raise NotFoundError("the ledger holds nothing yet")
        return Position.unpack(raw).state_root

    def _add_snapshot(self, run: BackupRun) -> int | None:
        """Adds the newest kept snapshot and returns its height; a pruned log could not be restored without."""
        if self._log.first_height > 0:
            kept = starting_snapshot(self._directory, self._genesis.chain_id, self._log).path
            paths: Sequence[Path] = sorted(kept.iterdir())
        else:
            paths = list(iter_kept_files(self._directory))
        for path in paths:
            run.add_file(path)
        return int(paths[0].parent.name) if paths else None

    # Exports.

    def export_ndjson(self, out: BinaryIO, block_range: BlockRange, control: Control) -> ExportReport:
        """Writes the transactions of a range of blocks as NDJSON, for :meth:`Ledger.export_ndjson`."""
        with self.operation(control) as pace:
            exporter = Exporter(self._log, out, pace, block_range, self._store.durable.height)
            with self._store.snapshot() as snapshot:
                entry = snapshot.block_entry(exporter.first)
            return exporter.ndjson(0 if entry is None else entry.first_seq)

    def export_blocks(
        self, out: BinaryIO, block_range: BlockRange, control: Control, *, with_blobs: bool
    ) -> ExportReport:
        """Writes a range of blocks as a block file, for :meth:`Ledger.export_blocks`."""
        with self.operation(control) as pace:
            exporter = Exporter(self._log, out, pace, block_range, self._store.durable.height)
            blobs = self._blobs if with_blobs else None
            return exporter.blocks(self._genesis, blobs, self._rules_at)
