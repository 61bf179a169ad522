"""``node.pid`` in the ledger directory: which process serves it, told apart from a later one with the same number.

The first line is ``PID START``, START being the process's start in clock ticks since the machine booted (proc(5),
field 22 of ``stat``); the second is where it serves. The ledger's lock decides who may open it; this file tells whom
to signal (SPEC-NODE-132).
"""

import os
from pathlib import Path

PID_NAME = "node.pid"


def process_start(pid: int) -> str:
    """Returns the start of a process as in proc(5); "" where it does not run, or only waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The second field is a name in brackets, which may itself hold blanks and brackets.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def write_pid(directory: Path, url: str) -> Path:
    """Writes the file for this process and its ``url``, whole at once; returns its path."""
    fresh = directory / f".{PID_NAME}.new"
    fresh.write_text(f"{os.getpid()} {process_start(os.getpid())}\n{url}\n")
    return fresh.replace(directory / PID_NAME)


def running(directory: Path) -> tuple[int, str] | None:
    """Returns id and URL of the process that serves ``directory``.

    Returns None where none does, whatever a killed one left.
    """
    try:
        lines = (directory / PID_NAME).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    pid, _, start = (lines[0] if lines else "").partition(" ")
    if not (pid.isdigit() and len(pid) < 10 and start.isdigit()):
        return None
    url = lines[1] if len(lines) > 1 else ""
    return (int(pid), url) if process_start(int(pid)) == start else None


def running_pid(directory: Path) -> int | None:
    """Returns the id of the process that serves ``directory``, or None."""
    found = running(directory)
    return None if found is None else found[0]


def remove_pid(directory: Path) -> None:
    """Removes the file if it is this process's own."""
    if running_pid(directory) == os.getpid():
        (directory / PID_NAME).unlink(missing_ok=True)
