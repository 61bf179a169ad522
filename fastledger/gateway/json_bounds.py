"""Bounds on JSON text before it is decoded, so that a few bytes never become gigabytes of objects (SPEC-FHIR-14)."""

import re

# Below so many values, counting entries exactly is not worth its time: even if all were entries, little is held.
_CHEAP_VALUES = 1_000_000
_tokens = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},"]', re.DOTALL).finditer


def values_most(text: bytes) -> int:
    """At most how many values the text decodes to: every one but the first follows a comma or an opening bracket.

    Commas and brackets within strings are counted too, which errs on the safe side.
    """
    return 1 + text.count(b",") + text.count(b"[") + text.count(b"{")


def has_more_values(text: bytes, count_max: int) -> bool:
    """Whether the text may decode to more values than ``count_max``; a text that is no longer than that cannot."""
    return len(text) > count_max and values_most(text) > count_max


def has_more_items(text: bytes, count_max: int) -> bool:
    """Whether the outermost array, or an array that is an element of the outermost object, has more than so many items.

    True also for a string that does not end: such a text is refused in any case.
    """
    if values_most(text) <= max(count_max, _CHEAP_VALUES):
        return False
    open_brackets: list[int] = []
    commas = 0
    for match in _tokens(text):
        token = text[match.start()]
        if token == 0x22:
            if match.end() == match.start() + 1:
                return True
        elif token in b"[{":
            open_brackets.append(token)
        elif token in b"]}":
            if not open_brackets:
                return True
            open_brackets.pop()
        elif open_brackets[-1:] == [0x5B] and len(open_brackets) <= 2:
            commas += 1
            if commas >= count_max:
                return True
    return False
