"""Follows a guide: writes the files that its fenced blocks name, makes their changes, and runs their commands.

The word behind a block's language says what becomes of it. ``python PATH`` is appended to the file, which is made where
it is not there. ``diff PATH`` is a change: lines that begin with a space have to stand in the file, once and together,
and those with a plus go where they stand between them; ``@@`` parts one change from the next. ``console`` holds
commands behind ``$``, and below each what it prints: a line of ``…`` stands for any number of lines, a ``…`` in a line
for anything. Other blocks are for the reader.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```", re.DOTALL | re.MULTILINE)
_DONE = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the path behind it or an empty string, and its text."""

    language: str
    path: str
    text: str


def blocks_of(guide: str) -> list[Block]:
    """All fenced blocks of a guide that name their language, in order."""
    return [Block(*found) for found in _BLOCK.findall(guide)]


class Guide:
    """Follows blocks in ``root``, a copy of the repository, where commands run with ``environment`` over ours."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self._root = root
        self._environment = environment

    def follow(self, block: Block) -> None:
        """Does what a block says; asserts that commands succeed and print what stands below them."""
        if block.language == "diff":
            self._change(block)
        elif block.language == "console":
            for command, expected in _DONE.findall(block.text):
                self._run(command, expected)
        elif block.path:
            path = self._root / block.path
            with path.open("a") as file:
                if path.stat().st_size:
                    file.write("\n\n")
                file.write(block.text)

    def _change(self, block: Block) -> None:
        path = self._root / block.path
        text = path.read_text()
        for change in block.text.split("@@\n"):
            lines = change.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            after = "".join(line[1:] for line in lines if line[0] in " +")
            assert before.strip(), f"a change of {block.path} has no place"
            assert text.count(before) == 1, f"{block.path} has not once:\n{before}"
            text = text.replace(before, after)
        path.write_text(text)

    def _run(self, command: str, expected: str) -> None:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self._root,
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        told = f"$ {command}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, told
        assert re.fullmatch(_pattern(expected), done.stdout), f"{told}\ninstead of\n{expected}"


def _pattern(expected: str) -> str:
    """A regular expression for what a command prints."""
    if not expected.strip():
        return r"(?s).*"
    return "".join(_line_pattern(line) for line in expected.splitlines()) + r"\n*"


def _line_pattern(line: str) -> str:
    if line.strip() == "…":
        return r"(?:.*\n)*"
    return re.escape(line).replace("…", ".*") + r" *\n"


def commands_of(blocks: list[Block]) -> Iterator[str]:
    """The commands of a guide."""
    for block in blocks:
        if block.language == "console":
            yield from (command for command, _ in _DONE.findall(block.text))


def environment_of(root: Path) -> dict[str, str]:
    """What commands need to run the copy in ``root`` with this interpreter's programs."""
    programs = Path(sys.executable).parent
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "100",
    }
