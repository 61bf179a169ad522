"""Snapshots of the index: what goes into one, and how it becomes an index again (SPEC-SNAP-1..6).

A snapshot is taken through one read transaction while the ledger goes on. It holds state, transaction ids, block
entries and postings as any node has them: without the places of blocks in a log, which are filled in again from the
log that it is restored beside.
"""

import shutil
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path

from fastledger.chain.execution.executor import CHECKPOINT_KEY, Position
from fastledger.chain.execution.replay import checkpoint_position
from fastledger.chain.execution.store import NOWHERE, BlockEntry
from fastledger.crypto.merkle import HistoryTree
from fastledger.errors import CorruptionError, FastLedgerError, FormatVersionError, NotFoundError
from fastledger.model.reports import SnapshotReport
from fastledger.model.terms import TERM_BYTES
from fastledger.pace import Pace
from fastledger.storage import keys
from fastledger.storage.checkpoint import CheckpointBatch
from fastledger.storage.directory import LedgerDirectory
from fastledger.storage.files import OsFiles
from fastledger.storage.index import Index, IndexOutdatedError, IndexView
from fastledger.storage.log import SegmentLog
from fastledger.storage.snapshot import (
    TABLES,
    Manifest,
    SnapshotEntry,
    SnapshotFiles,
    check_chunk,
    decode_chunk,
    encode_chunks,
)
from fastledger.subjects.record import RECORDS, VERSIONS

STATE, TXIDS, BLOCKS, POSTINGS = range(len(TABLES))
_RUN_SEQS = 256
_RUN_SPAN_MAX = 1 << 32
_RELINKED_AT_ONCE = 10_000
_STEP_ENTRIES = 4_096
_ENTRY_BYTES = keys.SEQ_BYTES + len(BlockEntry(NOWHERE, bytes(32), 0, 0, 0).pack())


# Taking one.


def snapshot_report(manifest: Manifest) -> SnapshotReport:
    """Returns the summary of a manifest, without its list of chunks."""
    return SnapshotReport(
        manifest.chain_id,
        manifest.height,
        manifest.block_id,
        manifest.state_root,
        manifest.root,
        len(manifest.chunks),
        manifest.entries,
    )


def index_entries(view: IndexView) -> Iterator[SnapshotEntry]:
    """Yields everything in the index that does not depend on this node's disk, ascending by table and key."""
    yield from (SnapshotEntry(STATE, key, value) for key, value in view.iter_state())
    yield from (SnapshotEntry(TXIDS, key, value) for key, value in view.iter_raw("txids"))
    for key, value in view.iter_raw("blocks"):
        entry = BlockEntry.unpack(value[keys.SEQ_BYTES :])._replace(ref=NOWHERE)
        yield SnapshotEntry(BLOCKS, key, value[: keys.SEQ_BYTES] + entry.pack())
    for term, postings in groupby(view.iter_all("postings"), lambda item: item[0][:TERM_BYTES]):
        yield from _runs(term, (keys.decode_seq(key[TERM_BYTES:]) for key, _ in postings))


def _runs(term: bytes, seqs: Iterator[int]) -> Iterator[SnapshotEntry]:
    """Yields the postings of a term in runs that are cut alike at every node, wherever its checkpoints were."""
    held = next(seqs, None)
    while held is not None:
        first, offsets = held, [0]
        held = None
        for seq in seqs:
            if len(offsets) == _RUN_SEQS or seq - first >= _RUN_SPAN_MAX:
                held = seq
                break
            offsets.append(seq - first)
        value = b"".join(offset.to_bytes(4, "little") for offset in offsets)
        yield SnapshotEntry(POSTINGS, term + keys.encode_seq(first), value)


def write_snapshot(view: IndexView, chain_id: bytes, target: SnapshotFiles, pace: Pace) -> Manifest:
    """Writes what ``view`` shows to ``target``, chunk by chunk; ``pace`` is told the entries.

    Raises NotFoundError for an empty index.
    """
    value = view.get_meta(CHECKPOINT_KEY)
    if value is None:
        raise NotFoundError("the index holds nothing yet")
    position = Position.unpack(value)
    total = sum(view.count(name) for name in TABLES)
    target.begin()
    digests: list[bytes] = []
    done = 0
    for chunk, count in encode_chunks(_paced(index_entries(view), pace)):
        pace.spend(len(chunk))
        digests.append(target.write_chunk(len(digests), chunk))
        done += count
        pace.tell("snapshot", done, max(done, total))
    tip = position.tip
    manifest = Manifest(
        chain_id=chain_id,
        height=tip.height,
        block_id=tip.block_id,
        state_root=position.state_root,
        position=position._replace(ref=NOWHERE).pack(),
        entries=done,
        chunks=tuple(digests),
    )
    target.finish(manifest)
    return manifest


def _paced(entries: Iterator[SnapshotEntry], pace: Pace) -> Iterator[SnapshotEntry]:
    while taken := list(islice(entries, _STEP_ENTRIES)):
        pace.check()
        yield from taken


# Making an index of one.


class SnapshotLoader:
    """Loads chunks, in any order, into an empty index; nothing counts before :meth:`finish`.

    It does no I/O of its own but on the index: the caller feeds the chunks, wherever they come from.
    """

    def __init__(self, index: Index, manifest: Manifest, chain_id: bytes, name: str) -> None:
        """Takes the index and the manifest; ``name`` is for errors.

        Raises CorruptionError where the manifest is another chain's or contradicts itself.
        """
        self._index = index
        self._name = name
        self.manifest = manifest
        self.position = _checked_position(manifest, chain_id, name)
        self._missing = set(range(len(manifest.chunks)))
        self._entries = 0

    @property
    def missing(self) -> list[int]:
        """The numbers of the chunks that are still to be fed."""
        return sorted(self._missing)

    def feed(self, number: int, chunk: bytes) -> None:
        """Takes chunk ``number``. CorruptionError naming it where it is not what the manifest says."""
        check_chunk(self.manifest, number, chunk, f"{self._name} chunk {number}")
        if number not in self._missing:
            return
        tables: list[tuple[list[bytes], list[bytes]]] = [([], []) for _ in TABLES]
        for entry in decode_chunk(chunk, f"{self._name} chunk {number}"):
            names, values = tables[entry.table]
            names.append(entry.key)
            values.append(entry.value)
            self._entries += 1
        self._put(number, tables)
        self._missing.discard(number)

    def _put(self, number: int, tables: list[tuple[list[bytes], list[bytes]]]) -> None:
        for table, (names, values) in enumerate(tables):
            if not names:
                continue
            if not _well_formed(table, names, values):
                raise CorruptionError("an entry has another shape", path=f"{self._name} chunk {number}")
            if table == STATE:
                values = [keys.seal_value(key, value) for key, value in zip(names, values, strict=True)]
            if table == BLOCKS:
                seqs = [
                    keys.seq_key(keys.decode_seq(value), keys.decode_height(key))
                    for key, value in zip(names, values, strict=True)
                ]
                self._index.put_raw("seqs", seqs, [b""] * len(seqs))
            self._index.put_raw(TABLES[table], names, values)

    def finish(self, log: SegmentLog | None) -> Position:
        """Completes the index: finds its blocks in ``log`` and sets its checkpoint, durably; returns the position.

        Raises CorruptionError where chunks or entries are missing, or the log is not this chain's.
        """
        if self._missing or self._entries != self.manifest.entries:
            raise CorruptionError(f"{len(self._missing)} chunks are missing", path=self._name)
        self._check_history()
        position = self.position if log is None else relink(self._index, log, self.position)
        self._index.put_raw("meta", [CHECKPOINT_KEY], [position.pack()])
        self._index.sync()
        return position

    def _check_history(self) -> None:
        """Checks that the block entries are those that the history tree commits to.

        The next block is checked against it.
        """
        tree = HistoryTree()
        with self._index.snapshot() as view:
            for height, (key, value) in enumerate(view.iter_raw("blocks")):
                if keys.decode_height(key) != height:
                    raise CorruptionError(f"there is no entry of block {height}", path=self._name)
                tree.append(BlockEntry.unpack(value[keys.SEQ_BYTES :]).block_id)
        if tree.to_bytes() != self.position.history:
            raise CorruptionError("the entries of blocks do not give the history", path=self._name)


def _checked_position(manifest: Manifest, chain_id: bytes, name: str) -> Position:
    if manifest.chain_id != chain_id:
        raise CorruptionError("the snapshot is of another chain", path=name)
    try:
        position = Position.unpack(manifest.position)
        agreed = HistoryTree.from_bytes(position.history).size == position.tip.height + 1
    except (FastLedgerError, ValueError, TypeError):
        raise CorruptionError("the snapshot's position is damaged", path=name) from None
    told = (position.tip.height, position.tip.block_id, position.state_root)
    if not agreed or told != (manifest.height, manifest.block_id, manifest.state_root):
        raise CorruptionError("the snapshot's position contradicts its manifest", path=name)
    return position


def _well_formed(table: int, names: list[bytes], values: list[bytes]) -> bool:
    name_lengths, value_lengths = set(map(len, names)), set(map(len, values))
    if table == STATE:
        return min(name_lengths) >= 1 and max(name_lengths) <= keys.STATE_KEY_BYTES_MAX
    if table == TXIDS:
        return (name_lengths, value_lengths) == ({keys.TXID_BYTES}, {keys.SEQ_BYTES})
    if table == BLOCKS:
        return (name_lengths, value_lengths) == ({keys.HEIGHT_BYTES}, {_ENTRY_BYTES})
    runs = all(length and length % 4 == 0 and length <= 4 * _RUN_SEQS for length in value_lengths)
    return runs and name_lengths == {TERM_BYTES + keys.SEQ_BYTES}


def relink(index: Index, log: SegmentLog, position: Position) -> Position:
    """Fills in the places that the blocks of a restored index have in the log.

    Returns the position with its own place. Raises CorruptionError where the log holds another block at some height,
    or does not reach the index.
    """
    height = position.tip.height
    path = str(log.path_of(0).parent)
    if not _goes_on_from(log, height):
        held = f"{log.first_height} to {log.end.height}"
        raise CorruptionError(f"holds heights {held}, the snapshot is of {height}", path=path)
    frames = (frame for frame in log.positions() if frame.height <= height)
    while taken := list(islice(frames, _RELINKED_AT_ONCE)):
        blocks = []
        with index.snapshot() as view:
            for ref, at, block_id in taken:
                entry = BlockEntry.unpack(view.block_entry(at) or b"")
                if ref is None or entry.block_id != block_id:
                    raise CorruptionError(f"holds another block at height {at} than the snapshot", path=path)
                blocks.append((at, entry.first_seq, entry._replace(ref=ref).pack()))
                if at == height:
                    position = position._replace(ref=ref)
        index.write_checkpoint(CheckpointBatch(blocks=blocks))
    return position


def _goes_on_from(log: SegmentLog, height: int) -> bool:
    """Whether the log holds block ``height``, or is empty and begins with the next one."""
    newest = log.first_height - 1 if log.end.ref is None else log.end.height
    return log.first_height - 1 <= height <= newest


def load_snapshot(
    source: SnapshotFiles, path: Path, chain_id: bytes, log: SegmentLog | None, pace: Pace
) -> Position:
    """Builds the index ``path``, which must not be there, from a snapshot and the log beside it."""
    manifest = source.manifest()
    index = Index.open(path, chain_id)
    try:
        loader = SnapshotLoader(index, manifest, chain_id, str(source.path))
        total = len(manifest.chunks)
        for number in loader.missing:
            chunk = source.chunk(manifest, number)
            pace.spend(len(chunk))
            loader.feed(number, chunk)
            pace.tell("index", number + 1, total)
        return loader.finish(log)
    finally:
        index.close()


# Those that a ledger keeps.


def kept_snapshots(directory: LedgerDirectory) -> list[tuple[int, Path]]:
    """Returns (height, directory) of the snapshots that a ledger keeps, newest first; they may be incomplete."""
    path = directory.snapshots_path
    names = [entry for entry in path.iterdir() if entry.name.isdigit()] if path.is_dir() else []
    return sorted(((int(entry.name), entry) for entry in names), reverse=True)


def kept_place(directory: LedgerDirectory, height: int) -> Path:
    """Returns the directory of a kept snapshot of ``height``."""
    return directory.snapshots_path / f"{height:012d}"


def keep_snapshot(directory: LedgerDirectory, made: Path, manifest: Manifest) -> Path:
    """Moves a whole snapshot among those that are kept, durably; returns its place."""
    files = OsFiles()
    files.make_dir(directory.snapshots_path)
    place = kept_place(directory, manifest.height)
    if place.exists():  # of the same height, and so the same
        shutil.rmtree(place)
    files.rename(made, place)
    files.fsync_dir(directory.snapshots_path)
    files.fsync_dir(directory.root)
    return place


def starting_snapshot(directory: LedgerDirectory, chain_id: bytes, log: SegmentLog) -> SnapshotFiles:
    """Returns the newest kept snapshot from which ``log`` goes on. Raises CorruptionError where there is none."""
    for height, path in kept_snapshots(directory):
        if not _goes_on_from(log, height):
            continue
        files = SnapshotFiles(path)
        try:
            if files.manifest().chain_id == chain_id:
                return files
        except (CorruptionError, NotFoundError, FormatVersionError):
            continue
    message = (
        f"begins at height {log.first_height}, and no whole snapshot is kept to start from: restore a backup"
    )
    raise CorruptionError(message, path=str(directory.log_path))


def rebuild_index(
    directory: LedgerDirectory, chain_id: bytes, log: SegmentLog, source: SnapshotFiles
) -> None:
    """Puts an index built from a snapshot in the place of a closed one; after a crash there is one or the other."""
    with directory.workspace() as folder:
        load_snapshot(source, folder / "index", chain_id, log, Pace())
        Index.destroy(directory.index_path)
        OsFiles().rename(folder / "index", directory.index_path)
        OsFiles().fsync_dir(directory.root)


def erased_envelopes(view: IndexView) -> Iterator[bytes]:
    """Yields the digests of every version of every erased record, which must be gone from the blob store."""
    for key, value in view.iter_state(RECORDS.prefix):
        record = RECORDS.decode(value)
        if not record.erased:
            continue
        yield record.present.digest
        for number in range(1, record.version):
            raw = view.get_state(VERSIONS.prefix + VERSIONS.pack(key[len(RECORDS.prefix) :], number))
            if raw is not None:
                yield VERSIONS.decode(raw).digest


def iter_kept_files(directory: LedgerDirectory) -> Iterable[Path]:
    """Returns every file of the newest whole kept snapshot, its manifest last."""
    for _, path in kept_snapshots(directory):
        files = SnapshotFiles(path)
        try:
            files.manifest()
        except (CorruptionError, NotFoundError, FormatVersionError):
            continue
        return sorted(entry for entry in path.iterdir())
    return []


def open_index_and_log(directory: LedgerDirectory, chain_id: bytes) -> tuple[Index, SegmentLog, bool]:
    """Opens index and log; returns them, and whether the index had to be built from a kept snapshot.

    An index of an earlier format is dropped: the log rebuilds it. One that is absent, or behind what is left of a
    pruned log, is built from the snapshot that pruning kept.
    """
    try:
        index = Index.open(directory.index_path, chain_id)
    except IndexOutdatedError:
        Index.destroy(directory.index_path)
        index = Index.open(directory.index_path, chain_id)
    log = None
    try:
        checkpoint = checkpoint_position(index, directory.index_path)
        scan_from = None if checkpoint is None or checkpoint.ref == NOWHERE else checkpoint.ref
        log = SegmentLog.open(directory.root, chain_id, scan_from=scan_from)
        if log.first_height <= (0 if checkpoint is None else checkpoint.tip.height + 1):
            return index, log, False
        source = starting_snapshot(directory, chain_id, log)
        index.close()
        rebuild_index(directory, chain_id, log, source)
        return Index.open(directory.index_path, chain_id), log, True
    except BaseException:
        index.close()
        if log is not None:
            log.close()
        raise
