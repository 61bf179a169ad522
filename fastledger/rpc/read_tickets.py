"""Tickets for reads that were granted: they let a download go on without another entry in the audit (SPEC-READ-4)."""

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from fastledger.chain.envelopes import ReadGrant
from fastledger.errors import NotFoundError

TICKET_BYTES = 32


class _Held(NamedTuple):
    """A grant, the owner that its ticket was given to, and when the ticket expires (UTC ms)."""

    grant: ReadGrant
    owner: bytes
    expires_ms: int


class ReadTickets:
    """A bounded table of tickets in memory, for one thread; a restart ends every ticket.

    Tickets are looked up by their SHA-256, so that the time of a look-up tells nothing of one.
    """

    def __init__(self, *, lifetime_ms: int, tickets_max: int, clock_ms: Callable[[], int]) -> None:
        """Takes the bounds; beyond ``tickets_max`` the oldest tickets make room."""
        self._lifetime_ms = lifetime_ms
        self._tickets_max = tickets_max
        self._clock_ms = clock_ms
        self._held: OrderedDict[bytes, _Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def issue(self, grant: ReadGrant, owner: bytes) -> str:
        """Issues a ticket for a grant: 64 hexadecimal digits that only ``owner`` (32 bytes) can use."""
        now_ms = self._clock_ms()
        # All live equally long, so the oldest end first.
        while self._held and (
            len(self._held) >= self._tickets_max or next(iter(self._held.values())).expires_ms <= now_ms
        ):
            self._held.popitem(last=False)
        ticket = secrets.token_bytes(TICKET_BYTES)
        self._held[sha256(ticket).digest()] = _Held(grant, owner, now_ms + self._lifetime_ms)
        return ticket.hex()

    def find(self, ticket: str, owner: bytes) -> ReadGrant:
        """Returns a ticket's grant; ``NotFoundError`` for one that is unknown, expired, or another owner's."""
        held = self._held.get(_key_of(ticket))
        if held is None or not hmac.compare_digest(held.owner, owner) or held.expires_ms <= self._clock_ms():
            raise NotFoundError("there is no such ticket")
        return held.grant

    def end(self, ticket: str) -> None:
        """Ends a ticket before its time."""
        self._held.pop(_key_of(ticket), None)


def _key_of(ticket: str) -> bytes:
    try:
        return sha256(bytes.fromhex(ticket)).digest()
    except ValueError:
        raise NotFoundError("there is no such ticket") from None
