"""The package as others get it: what a wheel and an sdist hold, and that it works beside other people's libraries.

What installs needs a package index: those tests are skipped, loudly, where none answers, and fail there where
``FASTLEDGER_REQUIRE_PEERS=1`` asks for them (as CI does).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from conftest import PROJECT_ROOT
from packaging.requirements import Requirement

INDEX_REQUIRED = os.environ.get("FASTLEDGER_REQUIRE_PEERS") == "1"
LIBRARY_BYTES_MAX = 3_000_000
# What wheels for manylinux_2_34 may ask of the system, and older tags less.
GLIBC_MINOR_MAX = 34
SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0"}
# What people embed the engine beside: each line is one environment that has to come about.
BESIDE = (
    ("aiohttp==3.11.18", "cbor2<6", "cwt==3.3.0"),
    ("aiohttp>=3.14", "cbor2>=6"),
)
# What a checkout has for git, editors and the CI service alone.
NOT_IN_SDIST = (".git", ".pre-commit")


def run(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command's run, which must end well."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel for this Python and an sdist, built from the checkout; objects that are there are used."""
    folder = tmp_path_factory.mktemp("package")
    setup = (sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder)
    wheel = ("bdist_wheel", "--bdist-dir", folder / "unpacked", "--dist-dir", folder)
    run(*setup, "build", "--build-lib", folder / "lib", *wheel, cwd=PROJECT_ROOT)
    run(*setup, "sdist", "--dist-dir", folder, cwd=PROJECT_ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def library(wheel: Path) -> bytes:
    """The bytes of the one shared object in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if ".so" in name or ".dylib" in name]
        assert name.startswith("fastledger/_native/_library.")
        return archive.read(name)


# ---- What is in them ----


def test_a_wheel_holds_the_package_and_no_sources_of_the_library(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = message_from_string(
            next(archive.read(name) for name in names if name.endswith("/METADATA")).decode()
        )
    assert {"fastledger/py.typed", "fastledger/_native/scan.pyi", "fastledger/_native/scan.py"} <= names
    assert {Path(name).suffix for name in names if name.startswith("fastledger/")} == {".py", ".pyi", ".so", ".typed"}
    assert not {name for name in names if not name.startswith(("fastledger/", "fastledger-"))}
    plain = [Requirement(line) for line in about.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {item.name for item in plain} == {"aiohttp", "cbor2", "coincurve", "cryptography", "lmdb", "msgspec"}
    assert set(about.get_all("Provides-Extra", [])) == {"bench", "cli", "demo", "dev", "fhir", "node"}
    assert about["Requires-Python"] == "<3.14,>=3.11"


def test_the_library_is_small_and_stripped(library: bytes) -> None:
    assert len(library) < LIBRARY_BYTES_MAX
    assert b".symtab" not in library


@pytest.mark.skipif(sys.platform != "linux", reason="of the shared libraries and symbol versions of Linux")
def test_the_library_asks_little_of_the_system(library: bytes) -> None:
    """What auditwheel looks at: the libraries that are linked, and the youngest symbols of glibc."""
    linked = {name.decode() for name in re.findall(rb"\0(lib[\w+-]+\.so[.\d]*)(?=\0)", library)}
    assert linked
    assert linked <= SYSTEM_LIBRARIES
    versions = {int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", library)}
    assert max(versions) <= GLIBC_MINOR_MAX


def test_an_sdist_holds_what_the_checkout_does_and_builds(dist: Path, tmp_path: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    if (PROJECT_ROOT / ".git").exists():
        tracked = run("git", "ls-files", "-z", cwd=PROJECT_ROOT).stdout.split("\0")[:-1]
        wanted = [name for name in tracked if not name.startswith(NOT_IN_SDIST)]
        assert [name for name in wanted if (PROJECT_ROOT / name).exists() and not (root / name).exists()] == []
    # The objects are of the same sources, whose times the archive keeps: only the linking is left to do.
    shutil.copytree(PROJECT_ROOT / "build", root / "build", copy_function=shutil.copy2)
    run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", cwd=root)
    tests = ("tests/native/test_library.py", "tests/structure/test_exports.py", "tests/crypto/test_merkle.py")
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=root)


# ---- Installed ----


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A package index that answers; a test that asks for it is skipped, loudly, where none does."""
    folder = tmp_path_factory.mktemp("index")
    asked = ("download", "--quiet", "--no-deps", "--retries", "1", "--timeout", "10", "--dest", folder, "cwt==3.3.0")
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, asked)], capture_output=True, check=False)
    if done.returncode != 0:
        message = "no package index answers: what is installed from one was not tested"
        if INDEX_REQUIRED:
            pytest.fail(message)
        pytest.skip(message)


@pytest.mark.parametrize("others", BESIDE, ids=" ".join)
@pytest.mark.usefixtures("index")
def test_it_resolves_beside_other_libraries(wheel: Path, tmp_path: Path, others: tuple[str, ...]) -> None:
    options = ("--dry-run", "--quiet", "--ignore-installed", "--only-binary", ":all:", "--report", "report.json")
    run(sys.executable, "-m", "pip", "install", *options, wheel, *others, cwd=tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    chosen = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}
    assert chosen["fastledger"]
    for line in others:
        wanted = Requirement(line)
        assert wanted.specifier.contains(chosen[wanted.name]), chosen


@pytest.mark.usefixtures("index")
def test_the_readme_runs_in_a_bare_environment_and_beside_cwt(wheel: Path, tmp_path: Path) -> None:
    """A fresh environment, an empty home, the wheel and what it requires; then a COSE library that needs cbor2 5."""
    text = (PROJECT_ROOT / "README.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    environment, home = tmp_path / "bare", tmp_path / "home"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--only-binary", ":all:")
    run(*pip, wheel, cwd=tmp_path)
    for turn, others in enumerate(((), ("cwt==3.3.0",))):
        if others:
            run(*pip, *others, wheel, cwd=tmp_path)
        folder = home / str(turn)
        folder.mkdir(parents=True)
        run(python, "-c", example, cwd=folder, HOME=str(home))
        release = run(python, "-c", "from importlib.metadata import version; print(version('cbor2'))", cwd=folder)
        assert release.stdout.startswith("5." if others else "6.")
    words = [environment / "bin" / "fastledger", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "this needs click, rich: pip install 'fastledger[cli]'" in done.stderr
