"""Reading entities of the durable state: one by its key, or a list by whom or what they name (SPEC-QRY-5)."""

from collections.abc import Callable, Iterator, Mapping
from heapq import merge
from itertools import groupby
from typing import Any

import msgspec

from fastledger.chain.execution.store import ChainStore, Snapshot
from fastledger.chain.reading.query import load_entry
from fastledger.errors import Code, CorruptionError, InputError, NotFoundError
from fastledger.limits import QUERY_CANDIDATES_MAX, QUERY_PAGE_DEFAULT, QUERY_PAGE_MAX
from fastledger.model.block import Block
from fastledger.model.body import Body
from fastledger.model.terms import kind_term
from fastledger.state.entity import Entity, EntityItem, EntityPage, EntityT, EntityTable, KeyValue
from fastledger.storage.directory import LedgerDirectory
from fastledger.storage.log import FrameRef
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.record import RECORDS, VERSIONS, RecordVersion


class EntityReader:
    """The part of :class:`fastledger.Ledger` that reads entities. Every method may be called from any thread."""

    _store: ChainStore
    _directory: LedgerDirectory
    _read_block: Callable[[FrameRef], Block]

    def entity(self, table: EntityTable[EntityT], *key: KeyValue) -> EntityT:
        """Returns the entity of ``table`` under ``key``, one value for each part, as of the newest durable block.

        Raises ``NotFoundError`` where there is none, ``InputError`` with ``BAD_QUERY`` for values that are no key.
        """
        packed = table.pack(*table.checked(*key))
        with self._store.snapshot() as snapshot:
            found = self._load(snapshot, table, packed)
        if found is None:
            raise NotFoundError(f"no {table.name} stands under {packed.hex()}")
        return found

    def entities(
        self,
        table: EntityTable[EntityT],
        *,
        by: Mapping[str, bytes] | None = None,
        cursor: int | None = None,
        limit: int = QUERY_PAGE_DEFAULT,
    ) -> EntityPage[EntityT]:
        """Returns a page of the entities of ``table`` whose fields are as ``by`` says, in order of first naming.

        ``by`` maps fields that hold an identity or a key of another table to their values, and all must match.
        ``cursor`` is the ``next_cursor`` of the page before, ``limit`` at most ``QUERY_PAGE_MAX``. Raises
        ``InputError`` with ``BAD_QUERY`` for a table that has no list or a field that has no index.
        """
        conditions = table.checked_list(by or {})
        terms = _list_terms(table, conditions)
        if not 1 <= limit <= QUERY_PAGE_MAX:
            raise InputError(f"limit is 1 to {QUERY_PAGE_MAX}", code=Code.BAD_QUERY)
        items: list[EntityItem[EntityT]] = []
        with self._store.snapshot() as snapshot:
            start_seq = cursor or 0
            for looked_at, seq in enumerate(_candidates(snapshot, terms, start_seq)):
                if looked_at == QUERY_CANDIDATES_MAX or len(items) >= limit:
                    return EntityPage(items, seq)
                entry = load_entry(snapshot, self._read_block, seq)
                for key in keys_named(table, entry.transaction.body):
                    if _first_named(snapshot, table, key, terms) != seq:
                        continue
                    found = self._load(snapshot, table, key)
                    if found is not None and _meets(found, conditions):
                        items.append(EntityItem(table.unpack(key), found))
        return EntityPage(items, None)

    def record_version(self, record: bytes, version: int = 0) -> RecordVersion:
        """Returns digest, size and author of one version's envelope; 0 is the present version.

        Raises ``NotFoundError``.
        """
        found = self.entity(RECORDS, record)
        if version in (0, found.version):
            return found.present
        if not 0 < version < found.version:
            raise NotFoundError(f"record {record.hex()} has no version {version}")
        return self.entity(VERSIONS, record, version)

    def _load(self, snapshot: Snapshot, table: EntityTable[EntityT], packed: bytes) -> EntityT | None:
        raw = snapshot.get_state(table.prefix + packed)
        try:
            return None if raw is None else table.decode(raw)
        except (msgspec.MsgspecError, ValueError):
            path = str(self._directory.index_path)
            raise CorruptionError(f"the state under {packed.hex()} is damaged: reindex", path=path) from None


def _list_terms(table: EntityTable[Any], by: Mapping[str, bytes]) -> list[bytes]:
    """Returns terms of which each transaction that named an entity of the list has at least one."""
    if by:
        found = [[term + value for term in table.listed_by[name]] for name, value in by.items()]
        return min(found, key=len)
    kinds = (
        kind for kind in REGISTRY.kinds.values() if any(source.table == table.term for source in kind.terms)
    )
    return [kind_term(kind.name) for kind in kinds]


def _meets(entity: Entity, conditions: Mapping[str, bytes]) -> bool:
    return all(getattr(entity, name) == value for name, value in conditions.items())


def keys_named(table: EntityTable[Any], body: Body) -> list[bytes]:
    """Returns the keys of ``table`` that a body's fields hold, each once."""
    found: list[bytes] = []
    for kind in REGISTRY.kinds.values():
        if kind.body is type(body):
            for source in kind.terms:
                if source.table == table.term:
                    found += source.get(body) if source.many else [source.get(body)]
    return list(dict.fromkeys(found))


def _candidates(snapshot: Snapshot, terms: list[bytes], start_seq: int) -> Iterator[int]:
    """Yields the numbers of the transactions under at least one of the terms, ascending, each once."""
    postings = [snapshot.postings(term, start_seq, snapshot.end_seq, reverse=False) for term in terms]
    for seq, _ in groupby(merge(*postings)):
        yield seq


def _first_named(snapshot: Snapshot, table: EntityTable[Any], key: bytes, terms: list[bytes]) -> int | None:
    """Returns the first transaction under one of the terms that names the entity, or None.

    The list has the entity at this transaction's place, so that it is there once.
    """
    for seq in snapshot.postings(table.term + key, 0, snapshot.end_seq, reverse=False):
        if any(snapshot.has_posting(term, seq) for term in terms):
            return seq
    return None
