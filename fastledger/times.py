"""Times as callers write them and as people read them; inside, a time is an integer of UTC milliseconds.

Wherever a caller names a moment, it may be given as

* an aware ``datetime``;
* ISO 8601 text with date, time of day and offset, such as ``2026-01-31T08:30Z`` or ``2026-01-31 09:30:00.250+01:00``
  (the profile of RFC 3339, in which seconds may be left out);
* an integer, the UTC milliseconds since 1970.

What names no one moment is refused: a ``datetime`` without a zone, text without an offset, a date alone. Nothing here
reads a clock (:mod:`fastledger.clock` does).
"""

import re
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from fastledger.errors import Code, InputError

Time: TypeAlias = int | str | datetime
"""A moment: UTC milliseconds, ISO 8601 text with an offset, or an aware ``datetime``."""

TIME_MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999, the last one that has a text."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_is_moment = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
).fullmatch


def time_ms(value: Time, name: str = "time") -> int:
    """Returns a moment as UTC milliseconds; what is finer than a millisecond is cut off.

    An integer is returned as it is; whether it lies in a sensible range is for the caller to say. Raises ``InputError``
    with ``BAD_TIME``, saying which argument ``name`` is meant, for what names no moment or more than one: a time
    without a zone, a date without a time of day.
    """
    if isinstance(value, str):
        return _parse(value, name)
    if isinstance(value, datetime):
        return _since_epoch(value, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _bad(name, f"a {type(value).__name__} is no time")


def time_text(moment_ms: int) -> str:
    """Returns UTC milliseconds as ISO 8601 text for people, such as ``2026-01-31T08:30:00.250Z``.

    A moment after the year 9999 or before 1970 is returned as its number.
    """
    if not 0 <= moment_ms <= TIME_MS_MAX:
        return str(moment_ms)
    moment = _EPOCH + moment_ms * _MILLISECOND
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _parse(text: str, name: str) -> int:
    if _is_moment(text) is None:
        raise _bad(name, "write it as 2026-01-31T08:30Z, with an offset from UTC")
    # Nanoseconds are more than a datetime holds; milliseconds are all that is kept.
    whole = re.sub(r"(\.\d{6})\d+", r"\1", text.upper())
    try:
        return _since_epoch(datetime.fromisoformat(whole), name)
    except ValueError:
        raise _bad(name, "no calendar has that date or time of day") from None


def _since_epoch(moment: datetime, name: str) -> int:
    if moment.utcoffset() is None:
        raise _bad(name, "the datetime has no zone: give it one, such as datetime.UTC")
    return (moment - _EPOCH) // _MILLISECOND


def _bad(name: str, why: str) -> InputError:
    return InputError(f"{name} is no moment: {why}", code=Code.BAD_TIME)
