"""An interrupt ends a command whatever the moment it comes at."""

import subprocess
import sys

import pytest

SCRIPT = """
import signal, sys, threading
import {module}

class Deaf:
    def __del__(self):
        # As a signal that arrives while this runs: the exception is ignored.
        signal.raise_signal(signal.SIGINT)
        for _ in range(100):
            pass

try:
    Deaf()
    threading.Event().wait(20)
except KeyboardInterrupt:
    sys.exit(0)
sys.exit(1)
"""


@pytest.mark.parametrize(("module", "code"), [("fastledger.cli.main", 0), ("fastledger.errors", 1)])
def test_an_interrupt_that_was_ignored_comes_again(module: str, code: int) -> None:
    """With the command line's module it does; without it the script shows that it is lost."""
    script = SCRIPT.format(module=module).replace("wait(20)", "wait(20)" if code == 0 else "wait(1)")
    done = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, check=False)
    assert done.returncode == code, done.stderr
