"""What the structs of settings are written with: a part's settings are a struct beside the part.

A field whose annotation has a ``Meta`` with a description can stand in the configuration file: text, default and
bounds are taken from there for the file's template, its checks and its documentation. Other fields are for programs
alone. Sizes are bytes, times milliseconds.
"""

PATH = {"path": True}
"""``Meta(extra=PATH)`` marks a path: where it is relative, it is relative to the configuration file."""
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SECOND_MS, HOUR_MS, DAY_MS = 1_000, 3_600_000, 86_400_000
