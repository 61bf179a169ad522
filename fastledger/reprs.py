"""Short, readable reprs: ids in hexadecimal and cut, long bytes as their number alone.

What a debugger, a log line or a failed assertion shows of a value must fit a line and hold neither keys nor content.
So bytes are shown only as far as they name something: what is no longer than a public key, by its first four bytes.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

_ID_BYTES_MAX = 33  # a compressed public key
_WHOLE_BYTES_MAX = 8  # a chain's id
_CUT_BYTES = 4
_ITEMS_MAX = 4


def short_hex(data: bytes) -> str:
    """Returns an id, a hash or a public key as its first eight hexadecimal digits; other bytes as their number.

    What has at most 8 bytes is shown whole. ``a1b2c3d4…`` has been cut, ``<1120 bytes>`` is no name of anything.
    """
    if len(data) <= _WHOLE_BYTES_MAX:
        return data.hex()
    if len(data) <= _ID_BYTES_MAX:
        return f"{data[:_CUT_BYTES].hex()}…"
    return f"<{len(data)} bytes>"


def brief(value: Any) -> str:
    """Returns a field's value in a few characters; of long lists the first items and how many there are."""
    if isinstance(value, bytes | bytearray | memoryview):
        return short_hex(bytes(value))
    if isinstance(value, Enum):
        return str(value.name)
    if isinstance(value, Mapping):
        return _joined(value.items(), lambda item: f"{item[0]}: {brief(item[1])}", "{}")
    if isinstance(value, list | frozenset) or type(value) is tuple:
        return _joined(value, brief, "[]")
    return repr(value)


def brief_fields(value: object, names: Any) -> str:
    """Returns ``Name(field=value, …)`` of the fields ``names``, without those that are None, empty or false."""
    shown = ((name, getattr(value, name)) for name in names)
    listed = ", ".join(f"{name}={brief(each)}" for name, each in shown if _says_something(each))
    return f"{type(value).__name__}({listed})"


class BriefRepr:
    """The repr of a dataclass whose fields may all be shown: as :func:`brief_fields` writes them."""

    __slots__ = ()

    def __repr__(self) -> str:
        fields: Mapping[str, Any] = getattr(self, "__dataclass_fields__", {})
        return brief_fields(self, [name for name, each in fields.items() if each.repr])


def _says_something(value: Any) -> bool:
    return value is not None and value is not False and not (hasattr(value, "__len__") and len(value) == 0)


def _joined(items: Any, show: Callable[[Any], str], brackets: str) -> str:
    texts = [show(item) for item in list(items)[:_ITEMS_MAX]]
    more = len(items) - len(texts)
    return f"{brackets[0]}{', '.join([*texts, f'… {more} more'] if more else texts)}{brackets[1]}"
