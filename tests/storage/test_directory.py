"""The ledger directory: one holder at a time, whoever it is and however it ends."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from storage_faults import CountingFiles, CrashingFiles, SimulatedCrash

from fastledger.errors import InputError, LedgerClosedError, LedgerLockedError, NotFoundError
from fastledger.storage.directory import LOCK_NAME, LedgerDirectory

GENESIS = b"\xa1genesis"

HOLDER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from fastledger.storage.directory import LedgerDirectory
    directory = LedgerDirectory.open(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
    """
)


def hold(root: Path) -> subprocess.Popen[bytes]:
    """Another process that has the directory open until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_the_genesis_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "ledger"
    with LedgerDirectory.create(root, GENESIS) as directory:
        assert directory.read_genesis() == GENESIS
        assert (directory.log_path, directory.index_path) == (root / "log", root / "index")
        assert (directory.blobs_path, directory.node_key_path) == (root / "blobs", root / "node.key")
    with pytest.raises(LedgerClosedError):
        directory.read_genesis()
    with LedgerDirectory.open(root) as directory:
        assert directory.read_genesis() == GENESIS
    assert root.stat().st_mode & 0o077 == 0


def test_a_ledger_is_not_created_twice_nor_opened_where_none_is(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        LedgerDirectory.open(tmp_path)
    assert list(tmp_path.iterdir()) == []
    LedgerDirectory.create(tmp_path, GENESIS).close()
    with pytest.raises(InputError):
        LedgerDirectory.create(tmp_path, b"other")
    with LedgerDirectory.open(tmp_path) as directory:  # the refused creation left no lock
        assert directory.read_genesis() == GENESIS


def test_a_second_opening_in_this_process_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "ledger")
    with LedgerDirectory.create(tmp_path / "ledger", GENESIS):
        for name in (tmp_path / "ledger", tmp_path / "link", tmp_path / "ledger" / ".." / "ledger"):
            with pytest.raises(LedgerLockedError, match=f"this process .pid {os.getpid()}"):
                LedgerDirectory.open(name)
    LedgerDirectory.open(tmp_path / "link").close()


def test_another_process_is_named_and_its_death_frees_the_lock(tmp_path: Path) -> None:
    LedgerDirectory.create(tmp_path, GENESIS).close()
    for end in (signal.SIGTERM, signal.SIGKILL):
        process = hold(tmp_path)
        with pytest.raises(LedgerLockedError, match=f"another process .pid {process.pid}"):
            LedgerDirectory.open(tmp_path)
        process.send_signal(end)
        process.wait()
        LedgerDirectory.open(tmp_path).close()


def test_an_unreadable_pid_is_unknown(tmp_path: Path) -> None:
    LedgerDirectory.create(tmp_path, GENESIS).close()
    process = hold(tmp_path)
    (tmp_path / LOCK_NAME).write_bytes(b"\xff not a pid")
    with pytest.raises(LedgerLockedError, match="pid unknown"):
        LedgerDirectory.open(tmp_path)
    process.communicate(b"")


def test_a_crash_while_creating_leaves_a_ledger_or_none(tmp_path: Path) -> None:
    counting = CountingFiles()
    LedgerDirectory.create(tmp_path / "whole", GENESIS, counting).close()
    for crash_at in range(counting.operations):
        root = tmp_path / str(crash_at)
        with pytest.raises(SimulatedCrash):
            LedgerDirectory.create(root, GENESIS, CrashingFiles(crash_at, 0.5))
        try:
            directory = LedgerDirectory.open(root)
        except NotFoundError:
            directory = LedgerDirectory.create(root, GENESIS)
        assert directory.read_genesis() == GENESIS
        directory.close()
