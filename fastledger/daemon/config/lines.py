"""On which line of a TOML document each key stands; the standard parser does not tell."""

import re
from collections.abc import Iterator

Key = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL = re.compile(r"'[^'\n]*'")
_LONG_BASIC = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}(?!")', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''.*?'{3,5}(?!')", re.DOTALL)
_COMMENT = re.compile(r"#[^\n]*")
_BLANK = re.compile(r"[ \t]*")


def locate_keys(text: str) -> dict[Key, int]:
    """Key path -> line, from 1, for a document that a TOML parser accepts.

    An entry of an array of tables has its number, from 0, in its path. Keys inside inline tables are not listed:
    their value's key stands for them.
    """
    return dict(reversed(list(_keys(text.replace("\r\n", "\n")))))


def _keys(text: str) -> Iterator[tuple[Key, int]]:
    position = 0
    table: Key = ()
    counts: dict[Key, int] = {}
    while position < len(text):
        if text[position] in " \t\n":
            position += 1
            continue
        if text[position] == "#":
            position = _skip_comment(text, position)
            continue
        line = text.count("\n", 0, position) + 1
        if text[position] == "[":
            is_array = text.startswith("[[", position)
            parts, position = _key_path(text, position + (2 if is_array else 1))
            position = _skip_value(text, position + (2 if is_array else 1))
            table = _numbered(parts, counts, is_array=is_array)
            yield table, line
            continue
        parts, position = _key_path(text, position)
        for length in range(1, len(parts) + 1):
            yield (*table, *parts[:length]), line
        position = _skip_value(text, position + 1)


def _numbered(parts: list[str], counts: dict[Key, int], *, is_array: bool) -> Key:
    """A header's path with the number of each array's present entry in it."""
    path: Key = ()
    for index, part in enumerate(parts):
        path = (*path, part)
        if is_array and index == len(parts) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _key_path(text: str, position: int) -> tuple[list[str], int]:
    """The parts of a dotted key and where it ends."""
    parts: list[str] = []
    while True:
        position = _end_of(_BLANK, text, position)
        start = position
        pattern = {'"': _BASIC, "'": _LITERAL}.get(text[position : position + 1], _BARE)
        position = _end_of(pattern, text, position)
        parts.append(text[start:position].strip("\"'"))
        position = _end_of(_BLANK, text, position)
        if text[position : position + 1] != ".":
            return parts, position
        position += 1


def _skip_value(text: str, position: int) -> int:
    """Behind the value's last line: the first newline that is in no string, array or comment."""
    depth = 0
    while position < len(text):
        character = text[position]
        if character in "\"'":
            long, short = (_LONG_BASIC, _BASIC) if character == '"' else (_LONG_LITERAL, _LITERAL)
            position = _end_of(long if text.startswith(character * 3, position) else short, text, position)
            continue
        if character == "#":
            position = _skip_comment(text, position)
            continue
        depth += (character in "[{") - (character in "]}")
        position += 1
        if character == "\n" and depth <= 0:
            break
    return position


def _skip_comment(text: str, position: int) -> int:
    return _end_of(_COMMENT, text, position)


def _end_of(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Where a match ends; at least one further where there is none, so that no document can hold the scan."""
    found = pattern.match(text, position)
    if found is None:
        return position + 1
    return found.end()
