"""The guide to a new subject works as it stands in CONTRIBUTING.md: its blocks are followed in a copy."""

import re
import shutil
from pathlib import Path

import pytest
from guide import Block, Guide, blocks_of, commands_of, environment_of

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fastledger", "tests", "docs")
FILES = ("pyproject.toml", "Makefile", "README.md", "LICENSE")


def section(title: str) -> list[Block]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return blocks_of(text.partition(f"\n## {title}\n")[2].partition("\n## ")[0])


def the_steps() -> list[Block]:
    return section("How to add a subject, in ten steps")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "*.c", ".hypothesis")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_a_subject_is_added_in_ten_steps_and_a_rule_of_it_changes(copy: Path) -> None:
    guide = Guide(copy, environment_of(copy))
    for block in the_steps():
        guide.follow(block)
    assert len((copy / "fastledger" / "subjects" / "recall.py").read_text().splitlines()) < 100
    change = section("How formats and rules change")
    assert sum(block.language == "console" for block in change) == 1
    for block in change:
        guide.follow(block)


def test_the_guide_has_ten_steps_and_shows_every_way_to_a_subject() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert re.findall(r"^\*\*(\d+)\. ", text, re.MULTILINE) == [str(number) for number in range(1, 11)]
    commands = list(commands_of(the_steps()))
    for way in ("pytest -q tests/subjects/test_conformance.py", "fastledger query", "fastledger verify"):
        assert any(way in command for command in commands), way


def test_a_step_that_does_not_fit_is_found(tmp_path: Path) -> None:
    guide = Guide(tmp_path, environment_of(tmp_path))
    guide.follow(Block("python", "a.py", "print('one')\n"))
    guide.follow(Block("console", "", "$ python a.py\no…e\n"))
    for block in (
        Block("console", "", "$ python a.py\ntwo\n"),
        Block("console", "", "$ python nothing.py\n"),
        Block("diff", "a.py", " print('two')\n+print('three')\n"),
        Block("diff", "a.py", "+print('three')\n"),
    ):
        with pytest.raises(AssertionError):
            guide.follow(block)
    guide.follow(Block("diff", "a.py", " print('one')\n+print('two')\n"))
    guide.follow(Block("console", "", "$ python a.py\n…\ntwo\n"))
