"""Offences, the points that they cost, and bans (SPEC-PEER-20..23)."""

from collections import OrderedDict
from enum import Enum, IntEnum, unique
from typing import NamedTuple

from fastledger.limits import PEER_BANS_MAX, PEER_SCORES_MAX

BAN_POINTS = 100
# Points fade by one in so many milliseconds: an honest node's rare slips never add up.
FADE_MS = 10_000


@unique
class Offence(Enum):
    """An offence of a peer: a word for logs and metrics, and its points, of which BAN_POINTS are a ban."""

    GARBAGE = ("garbage", 100)
    OVERSIZED = ("oversized", 100)
    UNREQUESTED = ("unrequested", 60)
    DRIBBLED = ("dribbled", 60)
    FLOOD = ("flood", 20)
    BAD_HEADER = ("bad-header", 100)
    FAR_FUTURE = ("far-future", 25)
    LOOSE_HEADERS = ("loose-headers", 25)
    ENDLESS_HEADERS = ("endless-headers", 100)
    NO_HEADERS = ("no-headers", 5)
    FALSE_WORK = ("false-work", 60)
    BAD_BLOCK = ("bad-block", 100)
    BAD_COPY = ("bad-copy", 60)
    WRONG_HINTS = ("wrong-hints", 25)
    BAD_TRANSACTION = ("bad-transaction", 60)
    EQUIVOCATION = ("equivocation", 60)
    # What a busy or broken node does as well as a hostile one: it costs the link, seldom more.
    STALLING = ("stalling", 2)
    NOT_READING = ("not-reading", 5)
    BAD_BLOB = ("bad-blob", 60)
    BAD_SNAPSHOT = ("bad-snapshot", 100)
    # These end the link but are what a wrongly set up node does: no more than a nuisance.
    WRONG_VERSION = ("wrong-version", 5)
    WRONG_CHAIN = ("wrong-chain", 10)

    def __init__(self, slug: str, points: int) -> None:
        self.slug = slug
        self.points = points


class PartyKind(IntEnum):
    """The kind of subject that is scored and banned."""

    ORGANISATION = 0
    ADDRESS = 1


class Party(NamedTuple):
    """A subject of scores and bans: an organisation by its certificate's name, or the host of an address."""

    kind: PartyKind
    name: str


class Ban(NamedTuple):
    """A ban on a subject until ``until_ms`` (UTC); ``why`` is an offence's word or ``operator``."""

    subject: Party
    until_ms: int
    why: str


def host_of(address: str) -> str:
    """Returns the host of ``host:port``; the brackets of an IPv6 address are kept."""
    return address.rpartition(":")[0] or address


class ScoreBoard:
    """The points of each subject, and the bans that they led to. Both tables are bounded."""

    def __init__(self, bans: tuple[Ban, ...] = (), *, ban_ms: int) -> None:
        self._ban_ms = ban_ms
        self._points: OrderedDict[Party, tuple[float, int]] = OrderedDict()
        self._bans: dict[Party, Ban] = {ban.subject: ban for ban in bans[-PEER_BANS_MAX:]}

    def points(self, subject: Party, now_ms: int) -> float:
        """Returns the points that a subject has left; they fade by one every FADE_MS."""
        points, at_ms = self._points.get(subject, (0.0, now_ms))
        return max(0.0, points - (now_ms - at_ms) / FADE_MS)

    def charge(self, subject: Party, offence: Offence, now_ms: int) -> Ban | None:
        """Adds an offence's points; returns the ban where they have become too many, else None."""
        points = self.points(subject, now_ms) + offence.points
        self._points[subject] = (points, now_ms)
        self._points.move_to_end(subject)
        while len(self._points) > PEER_SCORES_MAX:
            self._points.popitem(last=False)
        if points < BAN_POINTS:
            return None
        self._points.pop(subject)
        return self.ban(subject, now_ms + self._ban_ms, offence.slug)

    def ban(self, subject: Party, until_ms: int, why: str) -> Ban:
        """Shuts a subject out; where the table is full, the ban that ends first goes."""
        ban = self._bans[subject] = Ban(subject, until_ms, why)
        while len(self._bans) > PEER_BANS_MAX:
            del self._bans[min(self._bans, key=lambda other: self._bans[other].until_ms)]
        return ban

    def unban(self, subject: Party) -> bool:
        """Lets a subject in again, with no points; False where it was not banned."""
        self._points.pop(subject, None)
        return self._bans.pop(subject, None) is not None

    def is_banned(self, subject: Party, now_ms: int) -> bool:
        """Whether a subject is shut out now."""
        ban = self._bans.get(subject)
        if ban is not None and ban.until_ms <= now_ms:
            del self._bans[subject]
            return False
        return ban is not None

    def bans(self, now_ms: int) -> list[Ban]:
        """Returns the bans that hold now, first to end first."""
        held = [ban for ban in self._bans.values() if ban.until_ms > now_ms]
        return sorted(held, key=lambda ban: (ban.until_ms, ban.subject))


class Bucket:
    """A token bucket that fills at ``rate`` tokens a second up to ``burst``.

    Times are the network's milliseconds.
    """

    __slots__ = ("_at_ms", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now_ms: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at_ms = now_ms

    def take(self, count: float, now_ms: int) -> bool:
        """Takes ``count`` tokens and returns True; takes none and returns False where there are not as many."""
        self._tokens = min(self._burst, self._tokens + max(0, now_ms - self._at_ms) * self._rate / 1000)
        self._at_ms = now_ms
        if self._tokens < count:
            return False
        self._tokens -= count
        return True
