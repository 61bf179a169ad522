"""New ledger directories from a backup, a snapshot or a block file (SPEC-BAK-5, SPEC-SNAP-6, SPEC-EXP-5).

Each is made beside its place, proven, and then moved there: there is a whole ledger or none.
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree, rmtree
from typing import BinaryIO

from fastledger.chain.admission import Batch, admit
from fastledger.chain.execution.executor import Appended, Executor
from fastledger.chain.execution.replay import checkpoint_if_due
from fastledger.chain.execution.store import ChainStore
from fastledger.chain.keeping.backup import BackupFile, BackupManifest, Objects, read_manifest
from fastledger.chain.keeping.export import (
    BLOCK,
    ENVELOPE,
    PIECE,
    BlockFileReader,
    Item,
    named_envelopes,
)
from fastledger.chain.keeping.snapshots import (
    kept_place,
    load_snapshot,
    rebuild_index,
    starting_snapshot,
)
from fastledger.chain.ledger import Ledger
from fastledger.consensus.engines import make_engine
from fastledger.crypto.node_key import save_node_key
from fastledger.crypto.signing import SigningKey
from fastledger.errors import Code, CorruptionError, InputError
from fastledger.limits import COPY_CHUNK_BYTES, GENESIS_BYTES_MAX
from fastledger.model.block import Block
from fastledger.model.genesis import Genesis
from fastledger.model.receipt import check_seal
from fastledger.model.reports import RestoreReport
from fastledger.pace import Pace, Progress
from fastledger.storage.blobs.store import BlobStore, BlobWriter
from fastledger.storage.directory import LedgerDirectory
from fastledger.storage.files import OsFiles
from fastledger.storage.index import Index
from fastledger.storage.log import SegmentLog
from fastledger.storage.snapshot import SnapshotFiles

# What a backup may put into a ledger directory, and nothing else.
_PATHS = re.compile(
    r"genesis\.cbor|HEAD|node\.key|log/\d{8}\.seg|blobs/packs/\d{8}\.pack|blobs/files/[0-9a-f]{2}/[0-9a-f]{62}"
    r"|snapshots/\d{12}/(manifest\.cbor|\d{8}\.chunk)"
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MARK = "being-made-by-fastledger"
_SYNC_BYTES = 64 * 1024 * 1024
_SMALL_BYTES = 8 * 1024 * 1024


@contextmanager
def _made_beside(destination: Path) -> Iterator[Path]:
    """Yields a place to make a directory in, and moves it to ``destination`` at the end of the block, durably.

    The place is within a directory that a mark shows to be of such a making, so that what a crash left is removed by
    the next run, and what somebody else keeps under that name is not.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError("the destination is not empty")
    partial = destination.with_name(destination.name + ".partial")
    if os.path.lexists(partial):
        ours = partial.is_dir() and not partial.is_symlink()
        if not ours or (any(partial.iterdir()) and not (partial / _MARK).is_file()):
            raise InputError("what stands beside the destination under its name and .partial is in the way")
        rmtree(partial)
    files, place = OsFiles(), partial / "ledger"
    files.make_dir(partial)
    try:
        (partial / _MARK).touch()
        files.make_dir(place)
        yield place
        files.fsync_dir(place)
        files.rename(place, destination)
        files.fsync_dir(destination.absolute().parent)
    finally:
        rmtree(partial, ignore_errors=True)


# Backups.


def restore_backup(
    source: str | Path,
    destination: str | Path,
    *,
    verify: bool = True,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> RestoreReport:
    """Makes the ledger directory ``destination`` from a backup, every digest checked (SPEC-BAK-5).

    The index comes from the backup's snapshot where it has one, else from the log. Head and state root are those at
    the time of the backup; ``verify`` re-checks everything else. ``CorruptionError`` names the object that is not
    what was backed up, or what the verification found; ``InputError`` where the destination is not empty.
    """
    source, pace = Path(source), Pace(progress=progress, cancel=cancel)
    manifest = read_manifest(source)
    with _made_beside(Path(destination)) as partial:
        _copy_files(source, manifest, partial, pace)
        genesis = Genesis.decode((partial / "genesis.cbor").read_bytes())
        if genesis.chain_id.hex() != manifest.chain_id:
            raise CorruptionError("the genesis document is another chain's", path=str(source))
        if manifest.snapshot_height is not None:
            _index_from_snapshot(partial, genesis.chain_id)
        report = _prove(partial, verify=verify, pace=pace)
        found = (report.height, report.block_id.hex(), report.state_root.hex(), report.transactions)
        if found != (manifest.height, manifest.block_id, manifest.state_root, manifest.transactions):
            raise CorruptionError("the restored chain does not stand where the backup says", path=str(source))
    return report


def _copy_files(source: Path, manifest: BackupManifest, target: Path, pace: Pace) -> None:
    objects = Objects(source)
    total = sum(file.data_bytes for file in manifest.files)
    done = 0
    names = {file.path for file in manifest.files}
    if len(names) != len(manifest.files) or not {"genesis.cbor", "HEAD"} <= names:
        raise CorruptionError("the backup's manifest does not list a ledger", path=str(source))
    for file in manifest.files:
        if not _PATHS.fullmatch(file.path) or not _DIGEST.fullmatch(file.sha256):
            raise CorruptionError("the backup's manifest names what no ledger has", path=str(source))
        _copy_file(objects, file, target / file.path, pace)
        done += file.data_bytes
        pace.tell("copy", done, total)


def _copy_file(objects: Objects, entry: BackupFile, target: Path, pace: Pace) -> None:
    """Copies one file, with the zeros behind its data that were not backed up."""
    path = objects.path_of(entry.sha256)
    files = objects.files
    files.make_dir(target.parent)
    hasher = hashlib.sha256()
    try:
        origin = files.open(path)
    except FileNotFoundError:
        raise CorruptionError(f"the object of {entry.path} is missing", path=str(path)) from None
    copy = files.create(target)
    try:
        offset = 0
        while data := files.read(origin, COPY_CHUNK_BYTES, offset):
            pace.check()
            hasher.update(data)
            offset += files.write(copy, [data], offset)
        if offset != entry.data_bytes or hasher.hexdigest() != entry.sha256 or entry.bytes < offset:
            raise CorruptionError(f"the object of {entry.path} is damaged", path=str(path), offset=0)
        if entry.bytes > offset:
            files.allocate(copy, entry.bytes)
        files.fdatasync(copy)
    finally:
        files.close(origin)
        files.close(copy)
    files.fsync_dir(target.parent)


def _index_from_snapshot(root: Path, chain_id: bytes) -> None:
    with LedgerDirectory.open(root) as directory:
        log = SegmentLog.open(root, chain_id)
        try:
            rebuild_index(directory, chain_id, log, starting_snapshot(directory, chain_id, log))
        finally:
            log.close()


def _prove(root: Path, *, verify: bool, pace: Pace) -> RestoreReport:
    """Opens the ledger that was made; ``CorruptionError`` with the first problem where it does not verify."""
    with Ledger.open(root, replica=True) as ledger:
        ledger.erase_again()
        verified = ledger.verify(pace.tell) if verify else None
        if verified is not None and not verified.ok:
            raise CorruptionError(
                f"what was made does not verify ({len(verified.problems)} problems): {verified.problems[0]}",
                path=str(root),
            )
        return RestoreReport(
            ledger.chain_id,
            ledger.height,
            ledger.head,
            ledger.state_root,
            ledger.transaction_count,
            (root / "node.key").exists(),
            verified,
        )


# Snapshots.


def restore_snapshot(
    source: str | Path,
    destination: str | Path,
    genesis: bytes,
    *,
    node_key: SigningKey | None = None,
    password: str | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> RestoreReport:
    """Makes the ledger directory ``destination`` from a snapshot alone: its state, and no block or envelope.

    ``genesis`` is the chain's genesis document. With ``node_key``, which is stored, sealed under ``password``, the
    chain goes on from here. The maker of the snapshot is trusted with the state: the chain does not commit to it
    yet.
    """
    pace = Pace(progress=progress, cancel=cancel)
    document = _genesis(genesis)
    manifest = SnapshotFiles(Path(source)).manifest()
    with _made_beside(Path(destination)) as partial:

        def fill(directory: LedgerDirectory) -> None:
            log = SegmentLog.create(partial, document.chain_id, first_height=manifest.height + 1)
            try:
                place = kept_place(directory, manifest.height)
                copytree(source, place)
                load_snapshot(SnapshotFiles(place), directory.index_path, document.chain_id, log, pace)
            finally:
                log.close()
            _store_key(directory, document, node_key, password)

        LedgerDirectory.create(partial, document.encoded, fill=fill).close()
        return _prove(partial, verify=False, pace=pace)


def _genesis(encoded: bytes) -> Genesis:
    if len(encoded) > GENESIS_BYTES_MAX:
        raise InputError("the genesis document is too long", code=Code.OVERSIZED)
    return Genesis.decode(encoded)


def _store_key(
    directory: LedgerDirectory, genesis: Genesis, node_key: SigningKey | None, password: str | None
) -> None:
    if node_key is None:
        return
    if node_key.public_key not in genesis.proposers:
        raise InputError("the node's key is not a proposer of this chain", code=Code.NOT_A_PROPOSER)
    save_node_key(directory.node_key_path, node_key, password)


# Block files.


def import_blocks(
    source: BinaryIO,
    destination: str | Path,
    *,
    name: str = "block file",
    node_key: SigningKey | None = None,
    password: str | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> RestoreReport:
    """Makes the ledger directory ``destination`` from a block file: every seal, signature and root is checked.

    Without ``node_key`` (which is stored, sealed under ``password``) the ledger opens as a replica. Raises
    ``CorruptionError`` or ``InputError`` with ``BAD_BLOCK``, naming the offset or height, at the first thing wrong.
    """
    pace = Pace(progress=progress, cancel=cancel)
    reader = BlockFileReader(source, name)
    genesis = _genesis(reader.genesis)
    with _made_beside(Path(destination)) as partial:

        def fill(directory: LedgerDirectory) -> None:
            _Import(directory, genesis, pace).run(reader)
            _store_key(directory, genesis, node_key, password)

        LedgerDirectory.create(partial, genesis.encoded, fill=fill).close()
        return _prove(partial, verify=False, pace=pace)


class _Import:
    """A ledger directory that is being filled from a block file."""

    def __init__(self, directory: LedgerDirectory, genesis: Genesis, pace: Pace) -> None:
        self._directory = directory
        self._genesis = genesis
        self._pace = pace
        self._writer: BlobWriter | None = None
        self._brought: set[bytes] = set()
        self._piece_bytes = bytearray()
        self._small: list[bytes] = []
        self._small_bytes = 0
        self._unsynced_bytes = 0

    def run(self, reader: BlockFileReader) -> None:
        genesis, directory = self._genesis, self._directory
        self._log = SegmentLog.create(directory.root, genesis.chain_id)
        self._blobs = BlobStore.open(directory.blobs_path)
        index = Index.open(directory.index_path, genesis.chain_id)
        self._store = ChainStore(index)
        self._executor = Executor(
            genesis=genesis,
            store=self._store,
            log=self._log,
            engine=make_engine(genesis),
            key=None,
        )
        take: dict[int, Callable[[Item], None]] = {
            BLOCK: self._block,
            PIECE: self._piece,
            ENVELOPE: self._envelope,
        }
        try:
            for item in reader.items():
                self._pace.check()
                take[item.kind](item)
            self._end(index)
        finally:
            if self._writer is not None:
                self._writer.__exit__(None, None, None)
            self._store.close()
            index.close()
            self._blobs.close()
            self._log.close()

    def _piece(self, item: Item) -> None:
        if self._writer is None and len(self._piece_bytes) + len(item.payload) <= COPY_CHUNK_BYTES:
            self._piece_bytes += item.payload
            return
        if self._writer is None:
            self._writer = self._blobs.open_writer()
            self._writer.write(self._piece_bytes)
            self._piece_bytes = bytearray()
        self._writer.write(item.payload)

    def _envelope(self, item: Item) -> None:
        writer, self._writer = self._writer, None
        small, self._piece_bytes = bytes(self._piece_bytes), bytearray()
        if (writer is None and not small) or len(item.payload) != hashlib.sha256().digest_size:
            raise InputError(f"an envelope without pieces at byte {item.offset}", code=Code.BAD_BLOCK)
        erased = not any(item.payload)  # while it was exported
        if writer is None:
            digest = hashlib.sha256(small).digest()
        else:
            with writer:
                digest = bytes(32) if erased else writer.commit()
        if erased:
            return
        if digest != item.payload:
            raise InputError(
                f"the envelope before byte {item.offset} has another digest", code=Code.BAD_BLOCK
            )
        if writer is None:
            self._small.append(small)
            self._small_bytes += len(small)
            if self._small_bytes >= _SMALL_BYTES:
                self._flush()
        self._brought.add(digest)

    def _flush(self) -> None:
        """Stores the small envelopes that have gathered, with one sync for all of them."""
        self._blobs.put_many(self._small)
        self._small, self._small_bytes = [], 0

    def _block(self, item: Item) -> None:
        try:
            self._replay(Block.decode(item.payload), item.payload)
        except InputError as error:
            raise InputError(f"the block at byte {item.offset}: {error}", code=Code.BAD_BLOCK) from error

    def _replay(self, block: Block, payload: bytes) -> None:
        executor = self._executor
        expected = 0 if executor.position is None else executor.position.tip.height + 1
        if block.height != expected:
            raise InputError(f"height {block.height} stands where {expected} belongs", code=Code.BAD_BLOCK)
        ref = self._log.append(block.height, payload, block.block_id)
        rules = executor.rules_at(block.height)
        batch = admit(Batch.of_block(block), rules, chain_id=executor.chain_id)
        if self._writer is not None or self._piece_bytes or not self._brought <= set(named_envelopes(batch, rules)):
            raise InputError("it does not name an envelope before it", code=Code.BAD_BLOCK)
        if executor.position is None:
            appended = executor.start_from(block, ref)
        else:
            check_seal(block, executor.chain_id)
            appended = executor.replay(block, ref, batch)
        self._settle(appended, len(payload))
        self._pace.tell("blocks", block.height, block.height)

    def _settle(self, appended: Appended, byte_count: int) -> None:
        self._brought.clear()
        self._unsynced_bytes += byte_count
        if self._unsynced_bytes >= _SYNC_BYTES:
            self._log.sync()
            self._unsynced_bytes = 0
        self._store.settle(1)
        if appended.erased:
            self._flush()
        for digest in appended.erased:
            self._blobs.erase(digest)
        checkpoint_if_due(self._store)

    def _end(self, index: Index) -> None:
        if self._brought or self._piece_bytes or self._writer is not None or self._executor.position is None:
            raise InputError("the file ends before the block of its last envelope", code=Code.BAD_BLOCK)
        self._flush()
        self._log.sync()
        frozen = self._store.freeze(transactions_min=0, bytes_min=0)
        if frozen is not None:
            self._store.write_frozen(frozen)
        index.sync()
