"""Queries for transactions and the pages that they find: pure values, the same in a ledger and over the wire."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

from fastledger.errors import Code, InputError
from fastledger.limits import QUERY_PAGE_DEFAULT
from fastledger.model.fields import ID_BYTES
from fastledger.model.transaction import Transaction
from fastledger.reprs import BriefRepr
from fastledger.times import Time, time_ms

Topic: TypeAlias = Literal["blocks", "transactions", "alerts"]
"""What can be followed."""


def check_topic(topic: Topic, *, has_conditions: bool) -> None:
    """Raises ``InputError`` with ``BAD_QUERY`` for no topic, and for conditions on blocks, which have none."""
    if topic not in get_args(Topic):
        raise InputError("a topic is one of " + ", ".join(get_args(Topic)), code=Code.BAD_QUERY)
    if topic == "blocks" and has_conditions:
        raise InputError("blocks have no kind, signed_by or subject", code=Code.BAD_QUERY)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Query(BriefRepr):
    """The conditions of a query, all of which must hold.

    Ids are 16 bytes; heights and block times bound a range, both ends included. A time is an aware ``datetime``, ISO
    8601 text or UTC milliseconds (:mod:`fastledger.times`). ``signed_by`` and ``subject`` are identity ids: of the one
    who signed, and of the one whom the transaction concerns. ``ids`` names entities by their tables, ``{"record":
    id}``, and finds the transactions that name them. ``code`` finds refusals. ``alerts`` finds refusals and revoked
    identities, which someone should look at. ``cursor`` is the ``next_cursor`` of the page before.
    """

    kind: str | None = None
    signed_by: bytes | None = None
    subject: bytes | None = None
    ids: Mapping[str, bytes] = field(default_factory=dict)
    token: bytes | None = None
    code: Code | None = None
    alerts: bool = False
    from_height: int | None = None
    to_height: int | None = None
    from_time: Time | None = None
    to_time: Time | None = None
    newest_first: bool = False
    cursor: int | None = None
    limit: int = QUERY_PAGE_DEFAULT

    def __post_init__(self) -> None:
        """Turns the times into UTC milliseconds; raises ``InputError`` with ``BAD_TIME`` for what is none."""
        for name in ("from_time", "to_time"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, time_ms(given, name))

    @property
    def from_time_ms(self) -> int | None:
        """``from_time`` in UTC milliseconds."""
        return None if self.from_time is None else time_ms(self.from_time)

    @property
    def to_time_ms(self) -> int | None:
        """``to_time`` in UTC milliseconds."""
        return None if self.to_time is None else time_ms(self.to_time)

    def check(self) -> None:
        """Raises ``InputError`` with ``BAD_QUERY`` where an id does not have 16 bytes or the code does not exist."""
        named = {"signed_by": self.signed_by, "subject": self.subject, "token": self.token, **self.ids}
        for name, value in named.items():
            required = name in self.ids
            if (value is not None or required) and (not isinstance(value, bytes) or len(value) != ID_BYTES):
                raise InputError(f"{name} is not an id of {ID_BYTES} bytes", code=Code.BAD_QUERY)
        if self.code is not None and self.code not in Code.all():
            raise InputError("no such result code", code=Code.BAD_QUERY)

    @classmethod
    def of(cls, **conditions: Any) -> "Query":
        """Returns the query with these conditions; a name that is no field's is a table's and goes into ``ids``.

        ``Query.of(kind="access.read", record=record)`` is ``Query(kind="access.read", ids={"record": record})``. A
        value of None is no condition.
        """
        given = {name: value for name, value in conditions.items() if value is not None}
        ids = dict(given.pop("ids", {}))
        for name in [name for name in given if name not in _CONDITIONS]:
            ids[name] = given.pop(name)
        return cls(ids=ids, **given)


_CONDITIONS = frozenset(each.name for each in fields(Query))


@dataclass(frozen=True)
class Entry:
    """One transaction in the chain, as a query finds it: its bytes, its result and its place and time."""

    seq: int
    height: int
    index: int
    time_ms: int
    code: Code
    encoded: bytes

    def __repr__(self) -> str:
        return f"<Entry {self.seq} at {self.height}/{self.index} {self.code.slug}, {len(self.encoded)} bytes>"

    @cached_property
    def transaction(self) -> Transaction:
        """The decoded transaction."""
        return Transaction.decode(self.encoded)

    @property
    def txid(self) -> bytes:
        """The transaction's 32-byte id."""
        return self.transaction.txid


@dataclass(frozen=True, slots=True)
class Page:
    """One page of answers; ``next_cursor`` is None on the last one.

    ``end_seq`` is the number that the chain's next transaction will get: a cursor behind all of the chain.
    """

    entries: list[Entry]
    next_cursor: int | None
    end_seq: int

    def __repr__(self) -> str:
        following = "the last" if self.next_cursor is None else f"next_cursor={self.next_cursor}"
        return f"<Page of {len(self.entries)} entries, {following}>"

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def cut_entries(entries: Sequence[Entry], bytes_max: int) -> tuple[Sequence[Entry], Entry | None]:
    """Returns the first entries, at least one and up to ``bytes_max`` bytes of them, and the first left out."""
    room = bytes_max
    for place, entry in enumerate(entries):
        room -= len(entry.encoded)
        if room < 0 and place:
            return entries[:place], entry
    return entries, None
