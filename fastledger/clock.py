"""The machine's clock, read in one place; rules, models and engines get times handed in and never import this."""

import time


def system_clock_ms() -> int:
    """Returns the present time in UTC milliseconds."""
    return time.time_ns() // 1_000_000
