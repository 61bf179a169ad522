"""Reads the documents for a test of them: paths, commands and make targets that they name."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from source_graph import ROOT

# Where a path in a document may begin: the repository, the package, and what lies beside the document.
BASES = ("", "fastledger", "docs", "tests")
SOURCE_SUFFIXES = (".py", ".pyx", ".pyi", ".c", ".h", ".md", ".svg", ".yml", ".toml", ".service")
# What a document calls by the name of a file and no repository has: the reader's own files.
FOREIGN = ("node.toml", "bench-results/kernels.svg", ".github/workflows/*.yml")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_CONSOLE = re.compile(r"^```console\n.*?^```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
# Separators of domains in what is hashed look like paths: `fastledger/wrap/v1`.
_LABEL = re.compile(r"/v\d+$")
_PATH = re.compile(r"[\w.*-]+(/[\w.*-]+)*/?")


def documents() -> list[Path]:
    """The documents for readers: those at the top and those in ``docs/``."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def fences(text: str, *languages: str) -> list[str]:
    """The fenced blocks of a document in these languages, all of them where none is named."""
    return [body for language, body in _FENCE.findall(text) if not languages or language in languages]


def spans(text: str) -> list[str]:
    """What stands between single backticks outside fenced blocks."""
    return _SPAN.findall(_FENCE.sub("", text))


def prose(text: str) -> str:
    """A document without its fenced blocks."""
    return _FENCE.sub("", text)


def layer_map(readme: str) -> dict[str, str]:
    """The folders of the package in the order of the README's map, each with what the map says of it."""
    block = next(body for body in fences(readme, "") if "fastledger/\n" in body)
    return dict(re.findall(r"^  (\w+)/ +(.*)$", block.partition("fastledger/\n")[2], re.MULTILINE))


def top_folders() -> set[str]:
    """The names of the folders at the top of the repository and of the package."""
    return {path.name for base in ("", "fastledger") for path in (ROOT / base).iterdir() if path.is_dir()}


def paths_in(text: str) -> Iterator[str]:
    """Whatever a document's code spans name that can only be a file or folder of the repository."""
    folders = top_folders()
    for span in spans(text):
        name = span.removeprefix("./")
        if not _PATH.fullmatch(name) or name in FOREIGN or _LABEL.search(name):
            continue
        first, _, rest = name.partition("/")
        in_folder = first in folders and (rest != "" or name.endswith("/"))
        if in_folder or (name.endswith(SOURCE_SUFFIXES) and not name.startswith(("*", "."))):
            yield name


def paths_in_commands(text: str) -> Iterator[str]:
    """The files and folders of the repository that the command lines of a document name."""
    for body in fences(text, "sh"):
        for word in re.sub(r"#.*", "", body).split():
            first, _, rest = word.partition("/")
            if rest and first in ("tests", "benchmarks", "docs", "fastledger", "native"):
                yield word


def path_exists(name: str) -> bool:
    """Whether a file or folder is there: by its path from one of :data:`BASES`, or anywhere by its bare name."""
    name = name.rstrip("/")
    if any(next((ROOT / base).glob(name), None) is not None for base in BASES):
        return True
    if "/" in name:
        return False
    watched = ("fastledger", "tests", "native", "benchmarks", "docs", "packaging")
    return any(next((ROOT / folder).rglob(name), None) is not None for folder in watched)


@dataclass(frozen=True)
class Command:
    """A command line that a document shows, without comment, redirections and what a pipe leads to."""

    words: Sequence[str]

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands_in(text: str, program: str) -> Iterator[Command]:
    """The command lines of ``program`` in a document's spans and fenced blocks.

    Not those in blocks of the language ``console``: a test runs them (``tests/whole/test_contributing.py``).
    """
    shown = fences(_CONSOLE.sub("", text))
    lines = [line for body in shown for line in body.replace("\\\n", " ").splitlines()]
    lines += spans(text)
    for line in lines:
        found = re.match(rf"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?{program} (.*)", line)
        if found:
            bare = re.split(r"\s#\s|\s[|&>]|\s<\s|…|;", found[1])[0]
            yield Command(shlex.split(bare.replace("[", " ").replace("]", " ")))


def command_faults(command: Command, main: click.Group) -> Iterator[str]:
    """What a command line names that the command line does not have: a command, an option or an argument.

    ``a|b`` stands for either, a word in capitals for any command that may stand there, or an argument.
    """
    words = list(command.words)
    context = click.Context(main)
    groups: list[click.Command] = [main]
    while words and any(isinstance(group, click.Group) for group in groups) and words[0][:1].isalpha():
        following: list[click.Command] = []
        nests = [group for group in groups if isinstance(group, click.Group)]
        for word in words.pop(0).split("|"):
            pairs = [(nest, nest.list_commands(context) if word.isupper() else [word]) for nest in nests]
            asked = [nest.get_command(context, name) for nest, names in pairs for name in names]
            found = [item for item in asked if item is not None]
            if not found:
                yield f"no command {word}"
            following += found
        groups = following
    takes_arguments = any(isinstance(param, click.Argument) for item in groups for param in item.params)
    if groups and words and not words[0].startswith("-") and not takes_arguments:
        yield from () if any(isinstance(item, click.Group) for item in groups) else (f"no argument {words[0]}",)
    known = {option for item in [*groups, main] for param in item.params for option in _spellings(param)}
    for word in words:
        option = word.partition("=")[0]
        if re.fullmatch(r"--?[a-z][\w-]*(\|--?[a-z][\w-]*)*", option):
            yield from (f"no option {each}" for each in option.split("|") if each not in {*known, "--help", "-h"})


def _spellings(param: click.Parameter) -> list[str]:
    return [*param.opts, *param.secondary_opts]


def make_targets(makefile: str) -> set[str]:
    """The targets that somebody may ask for: those that the Makefile calls phony."""
    return {name for line in re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE) for name in line.split()}
