"""Indexes whose checkpoints take many transactions, and what happens between those."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from storage_faults import SimulatedCrash

from fastledger.storage.files import OsFiles
from fastledger.storage.index import Index
from fastledger.storage.lmdb_engine import Environment, LmdbTransaction

CHAIN = b"testnet\0"
CUT = 2  # pages, and so puts, of one transaction


def open_index(
    path: Path, *, pages_max: int = CUT, files: OsFiles | None = None, map_bytes: int = 1 << 26
) -> Index:
    return Index.open(path, CHAIN, map_bytes=map_bytes, pages_max=pages_max, files=files)


def dying_after(transactions: int) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number == transactions:
            raise SimulatedCrash

    return before


@contextmanager
def transactions_counted(before: Callable[[int], None]) -> Iterator[None]:
    """Calls ``before`` (transactions committed since the beginning) ahead of each one."""
    write, count = Environment.write, 0

    @contextmanager
    def counted(environment: Environment) -> Iterator[LmdbTransaction]:
        nonlocal count
        before(count)
        with write(environment) as txn:
            yield txn
        count += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "write", counted)
        yield
