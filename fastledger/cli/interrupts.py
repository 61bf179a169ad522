"""Interrupts that are never lost: Ctrl-C at the wrong moment would be.

Python raises ``KeyboardInterrupt`` wherever the main thread is. Where that is a finaliser or the callback of a weak
reference (the import system has one), the exception is reported as ignored and gone. A command that waits for ever
then goes on waiting.
"""

import contextlib
import signal
import sys
import threading
from typing import Any

_AGAIN_S = 0.05


def hear_interrupts() -> None:
    """From now on repeats an interrupt that Python ignored. For a program, not for a library."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Not from here: whatever is raised in a hook is ignored too.
            timer = threading.Timer(_AGAIN_S, _interrupt)
            timer.daemon = True
            timer.start()
        else:
            before(unraisable)

    sys.unraisablehook = hook


def _interrupt() -> None:
    main = threading.main_thread().ident
    if main is not None:
        # To the main thread alone, whose wait it has to end.
        with contextlib.suppress(OSError):
            signal.pthread_kill(main, signal.SIGINT)
