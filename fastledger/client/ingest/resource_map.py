"""Which record a resource of a source became: durable, and blind to who reads the file (SPEC-ING-4, SPEC-ING-5).

One SQLite file beside the keystore. Everything in it that comes from a source is an HMAC-SHA256 under a key of the
keystore, 16 bytes: the file tells how many resources there are and how often they changed, and nothing else. Losing
it loses no record and doubles none: ids of records follow from the same key, so that a second put is refused by the
chain, and the map is learnt anew.
"""

import hmac
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Self

from fastledger.errors import InputError, LedgerError

TAG_BYTES = 16
_SCHEMA = """
CREATE TABLE IF NOT EXISTS resource (
    key BLOB PRIMARY KEY, record BLOB NOT NULL, folder BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS content (key BLOB, tag BLOB, PRIMARY KEY (key, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS planned (
    key BLOB PRIMARY KEY, record BLOB NOT NULL, folder BLOB NOT NULL, version INTEGER NOT NULL,
    whole BLOB NOT NULL, owned BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leftover (record BLOB PRIMARY KEY) WITHOUT ROWID;
"""


class Mapped(NamedTuple):
    """The record of a resource and the folder that it is in, 16 bytes each."""

    record: bytes
    folder: bytes


class Plan(NamedTuple):
    """A version of a record that is about to be submitted.

    ``whole`` is the tag of the content alone, ``owned`` that of the content as the given person's.
    """

    key: bytes
    record: bytes
    folder: bytes
    version: int
    whole: bytes
    owned: bytes


class ResourceMap:
    """The map of one organisation on one chain. Not for use from several threads or processes at once."""

    def __init__(self, path: Path | None, secret: bytes, chain_id: bytes) -> None:
        """``path`` is the file (None: in memory alone); ``secret`` the organisation's key for it, 32 bytes.

        Raises ``LedgerError`` where the file cannot be opened, is something else, or another process holds it.
        """
        self._secret = hmac.digest(secret, b"fastledger/resource-map/v1" + chain_id, "sha256")
        self._path = path
        try:
            self._db = sqlite3.connect(
                ":memory:" if path is None else path, timeout=0.0, isolation_level=None
            )
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA secure_delete = ON")
            self._db.executescript(_SCHEMA)
            if path is not None:
                path.chmod(0o600)
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(
                f"the map from resources to records cannot be opened ({type(error).__name__}): it is damaged, or in use"
            ) from None

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ResourceMap of {self.resource_count} resources>"

    @property
    def resource_count(self) -> int:
        """How many resources have a record."""
        return int(self._db.execute("SELECT count(*) FROM resource").fetchone()[0])

    def tag(self, purpose: str, *parts: bytes) -> bytes:
        """16 bytes that stand for ``parts`` and can be made, or compared with a guess, with the key alone."""
        mac = hmac.new(self._secret, purpose.encode() + b"\0", "sha256")
        for part in parts:
            mac.update(len(part).to_bytes(8, "big"))
            mac.update(part)
        return mac.digest()[:TAG_BYTES]

    def find(self, key: bytes) -> Mapped | None:
        """The record of a resource; None where it has none yet."""
        row = self._db.execute("SELECT record, folder FROM resource WHERE key = ?", (key,)).fetchone()
        return None if row is None else Mapped(*row)

    def knows(self, key: bytes, tag: bytes) -> bool:
        """Whether the resource has, or had, the content of that tag."""
        found = self._db.execute("SELECT 1 FROM content WHERE key = ? AND tag = ?", (key, tag)).fetchone()
        return found is not None

    def plan(self, plans: Iterable[Plan]) -> None:
        """Makes durable what is about to be submitted."""
        self._write(
            ("INSERT OR REPLACE INTO planned VALUES (?, ?, ?, ?, ?, ?)", [tuple(item) for item in plans]),
        )

    def settle(self, plans: Iterable[Plan]) -> None:
        """Takes plans into the map whose versions are durable."""
        done = list(plans)
        self._write(
            ("INSERT OR REPLACE INTO resource VALUES (?, ?, ?)", [item[:3] for item in done]),
            ("INSERT OR IGNORE INTO content VALUES (?, ?)", [(item.key, item.whole) for item in done]),
            ("INSERT OR IGNORE INTO content VALUES (?, ?)", [(item.key, item.owned) for item in done]),
            ("DELETE FROM planned WHERE key = ?", [(item.key,) for item in done]),
        )

    def drop(self, plans: Iterable[Plan]) -> None:
        """Forgets plans that came to nothing."""
        self._write(("DELETE FROM planned WHERE key = ?", [(item.key,) for item in plans]))

    def retire(self, key: bytes) -> None:
        """Forgets a resource that goes on under another key; its record is a leftover, to be erased."""
        known = self.find(key)
        if known is not None:
            self._write(
                ("INSERT OR IGNORE INTO leftover VALUES (?)", [(known.record,)]),
                ("DELETE FROM resource WHERE key = ?", [(key,)]),
                ("DELETE FROM content WHERE key = ?", [(key,)]),
            )

    def recover(self, stands: Callable[[bytes, int], bool]) -> None:
        """After a crash: settles what reached the chain, by ``stands(record, version)``, and drops the rest."""
        plans = [Plan(*row) for row in self._db.execute("SELECT * FROM planned").fetchall()]
        reached = [item for item in plans if stands(item.record, item.version)]
        self.settle(reached)
        self.drop(plans)

    def leftovers(self, limit: int) -> list[bytes]:
        """Records that another one of the same resource has taken the place of, still to be erased."""
        rows = self._db.execute("SELECT record FROM leftover LIMIT ?", (limit,)).fetchall()
        return [row[0] for row in rows]

    def erased(self, records: Iterable[bytes]) -> None:
        """Forgets leftovers that are erased."""
        self._write(("DELETE FROM leftover WHERE record = ?", [(record,) for record in records]))

    def _write(self, *statements: tuple[str, list[tuple[object, ...]]]) -> None:
        wanted = [(text, rows) for text, rows in statements if rows]
        if not wanted:
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for text, rows in wanted:
                self._db.executemany(text, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise LedgerError(
                f"the map from resources to records cannot be written ({type(error).__name__})"
            ) from None


def map_path(keystore: Path, entry: str) -> Path:
    """Where the map of a keystore's organisation lies: beside the keystore."""
    if not entry or "/" in entry or entry in (".", ".."):
        raise InputError("the name of an organisation with a map has no slash")
    return keystore.with_name(f"{keystore.name}.{entry}.map")
