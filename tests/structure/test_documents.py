"""The documents are true: what they name exists, the map is that of the layers, and the README stays short."""

import re
from pathlib import Path

import pytest
from documents import (
    command_faults,
    commands_in,
    documents,
    fences,
    layer_map,
    make_targets,
    path_exists,
    paths_in,
    paths_in_commands,
    prose,
    top_folders,
)
from layers import BASE, LAYERS, LONE, TIMED
from pictures import Step, direct_imports, missing_functions, pictures
from source_graph import ROOT

from fastledger.cli.main import main

# Three minutes at 240 words a minute; a page of code is looked at, not read.
README_WORDS_MAX = 720

each_document = pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))


@each_document
def test_every_path_that_a_document_names_exists(path: Path) -> None:
    text = path.read_text()
    named = {*paths_in(text), *paths_in_commands(text)}
    assert not {name for name in named if not path_exists(name)}


@each_document
def test_every_command_that_a_document_shows_exists(path: Path) -> None:
    for command in commands_in(path.read_text(), "fastledger"):
        assert not list(command_faults(command, main)), f"fastledger {command}"


@each_document
def test_every_make_target_that_a_document_shows_exists(path: Path) -> None:
    targets = make_targets((ROOT / "Makefile").read_text())
    for command in commands_in(path.read_text(), "make"):
        assert command.words[0] in targets, command


def test_what_does_not_exist_is_found() -> None:
    text = (
        "`fastledger/chain/nowhere.py`, `chain/nowhere/`, `nowhere.c`, `make nothing`\n"
        "```sh\nfastledger node begin x\nfastledger node init --such\nfastledger nothing # why\n"
        "fastledger node status http://127.0.0.1\npytest tests/nowhere\n```\n"
    )
    assert [name for name in paths_in(text) if not path_exists(name)] == [
        "fastledger/chain/nowhere.py",
        "chain/nowhere/",
        "nowhere.c",
    ]
    faults = [list(command_faults(command, main)) for command in commands_in(text, "fastledger")]
    assert faults == [
        ["no command begin"],
        ["no option --such"],
        ["no command nothing"],
        ["no argument http://127.0.0.1"],
    ]
    assert list(paths_in_commands(text)) == ["tests/nowhere"]
    assert [command.words[0] for command in commands_in(text, "make")] == ["nothing"]


def test_most_documents_name_paths_and_commands() -> None:
    """A reader of documents that finds nothing would let everything pass."""
    texts = [path.read_text() for path in documents()]
    assert sum(len(set(paths_in(text))) for text in texts) > 60
    assert sum(len(list(commands_in(text, "fastledger"))) for text in texts) > 40


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_the_map_is_that_of_the_layers() -> None:
    assert list(layer_map(readme())) == list(reversed(LAYERS))
    for place, layer in enumerate(LAYERS):
        below = set(list(LAYERS)[:place])
        assert LAYERS[layer] - BASE - TIMED - LONE.keys() <= below, f"{layer} imports from above it on the map"


def test_every_folder_of_the_map_is_there_and_none_is_left_out() -> None:
    block = next(body for body in fences(readme(), "") if "fastledger/\n" in body)
    top = re.findall(r"^(\w+)/ *", block, re.MULTILINE)
    assert all((ROOT / name).is_dir() for name in top)
    package = {path.parent.name for path in (ROOT / "fastledger").glob("*/__init__.py")}
    assert set(layer_map(readme())) == package
    assert package <= top_folders()


def test_the_readme_is_read_in_three_minutes() -> None:
    text = readme()
    read = prose(text) + "".join(fences(text, ""))
    assert len(re.findall(r"\w[\w.,'’-]*", read)) <= README_WORDS_MAX


@pytest.mark.parametrize("name", pictures())
def test_the_pictures_are_up_to_date(name: str) -> None:
    """``python tests/structure/pictures.py`` writes them again."""
    assert (ROOT / "docs" / name).read_text() == pictures()[name]


def test_every_step_of_the_walk_is_a_function_that_exists() -> None:
    assert not list(missing_functions())
    planted = [Step("", "chain/execution/executor.py:Executor.forget"), Step("", "chain/no.py:no")]
    assert list(missing_functions(planted)) == [
        "chain/execution/executor.py:Executor.forget",
        "chain/no.py:no",
    ]


def test_the_arrows_of_the_layers_reach_what_may_be_imported_and_no_more() -> None:
    arrows = direct_imports(LAYERS)
    for layer, allowed in LAYERS.items():
        reached: set[str] = set()
        ahead = [layer]
        while ahead:
            ahead += arrows[ahead.pop()] - reached
            reached |= set(ahead)
        assert allowed & set(LAYERS) <= reached
        assert arrows[layer] <= allowed
