"""How many examples a property gets: few in the ordinary run, many under ``make fuzz``."""

import os

FUZZ_FACTOR = 50
FUZZING = os.environ.get("HYPOTHESIS_PROFILE") == "fuzz"


def examples(count: int) -> int:
    """``count`` in the ordinary run, so many times it under ``make fuzz``."""
    return count * FUZZ_FACTOR if FUZZING else count
