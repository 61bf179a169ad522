"""The Containerfile, as far as it can be tried without a container engine: what it copies, runs, and runs as."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from fastledger.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """The instructions with their arguments, continued lines joined."""
    lines = [line for line in (ROOT / "packaging" / "Containerfile").read_text().splitlines() if line]
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [(word, " ".join(rest.split())) for word, rest in (line.split(maxsplit=1) for line in text.splitlines())]


FILE = instructions()


def arguments(word: str) -> list[str]:
    return [rest for found, rest in FILE if found == word]


def stages() -> list[list[Instruction]]:
    found: list[list[Instruction]] = []
    for word, rest in FILE:
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def test_both_stages_stand_on_one_image_named_shortly() -> None:
    images = [rest.split()[0] for rest in arguments("FROM")]
    assert len(images) == 2
    (image,) = set(images)
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", image), "no host of a registry, and a Python that is named"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert image.startswith(("python:3.11-", "python:3.12-", "python:3.13-"))


def test_nothing_is_fetched_past_the_package_managers_and_no_secret_is_kept() -> None:
    assert arguments("ADD") == []
    assert arguments("ARG") == []
    assert not re.search(r"curl|wget|https?:|git clone|index-url", "\n".join(arguments("RUN")))
    assert not re.search(r"PASSWORD|TOKEN|KEY", "\n".join(arguments("ENV")))


def test_the_extras_that_it_installs_exist() -> None:
    (installed,) = re.findall(r'"\.\[([\w,]+)\]"', "\n".join(arguments("RUN")))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(installed.split(",")) <= set(project["optional-dependencies"])
    assert "node" in installed.split(",")


def test_what_it_copies_is_enough_to_build(tmp_path: Path) -> None:
    """As the first stage does, but for the compiling: objects that the checkout has are taken along."""
    build, final = stages()
    for word, rest in build:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = tmp_path / source if target == "./" else tmp_path / target
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy2
                copy(ROOT / source, place)
    if (ROOT / "build").exists():
        shutil.copytree(ROOT / "build", tmp_path / "build", copy_function=shutil.copy2)
        shutil.rmtree(tmp_path / "build" / "lib", ignore_errors=True)
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "dist").glob("fastledger-*.whl"))) == 1
    assert [rest for word, rest in final if word == "COPY"] == ["--from=build /opt/fastledger /opt/fastledger"]


def test_it_runs_as_nobody_special_on_a_volume_of_its_own() -> None:
    words = [word for word, _ in stages()[1]]
    assert words.index("USER") < words.index("ENTRYPOINT")
    (user,) = arguments("USER")
    (owner,) = re.findall(r"--uid (\d+)", "\n".join(arguments("RUN")))
    assert user == f"{owner}:{owner}"
    assert int(owner) >= 10_000
    assert arguments("VOLUME") == arguments("WORKDIR")[-1:] == ["/var/lib/fastledger"]
    assert arguments("STOPSIGNAL") == ["SIGTERM"]


def commands() -> list[list[str]]:
    """What the container starts and what asks for its health, each as the words after ``fastledger``."""
    assert arguments("ENTRYPOINT") == ['["fastledger"]']
    (start,) = arguments("CMD")
    (health,) = arguments("HEALTHCHECK")
    program, *status = json.loads(health.partition(" CMD ")[2])
    assert program == "fastledger"
    return [json.loads(start), status]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_its_commands_are_those_of_the_command_line(words: list[str]) -> None:
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found
    parsed = command.make_context(command.name, list(words))
    assert next(str(value) for value in parsed.params.values()).startswith("/var/lib/fastledger/")
