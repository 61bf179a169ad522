"""The habits of the code base, checked mechanically: sizes, documentation, rules and citations."""

import ast
import re
from pathlib import Path

import pytest
from report import FILE_LINES_MAX

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fastledger"
SOURCES = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted([*(ROOT / "native").rglob("*.[ch]"), *PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))

FUNCTION_LINES_MAX = 70


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_files_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX, f"{path} is longer than {FILE_LINES_MAX} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{path}:{node.name} has {length} lines"


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: str(path.relative_to(ROOT)))
def test_native_files_stay_small_and_pure(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX
    if path.suffix in {".c", ".h"}:
        assert "Python.h" not in text
        assert "printf" not in text


@pytest.mark.parametrize("path", SOURCES + NATIVE + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_for_later(path: Path) -> None:
    if path == Path(__file__):
        return
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.name != "__init__.py" or path.read_text().strip():
        assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def rules_in(text: str) -> set[str]:
    return set(re.findall(r"SPEC-[A-Z]+-\d+", text))


def test_every_rule_is_cited_by_a_test_and_every_citation_exists() -> None:
    specification = (ROOT / "docs" / "SPEC.md").read_text()
    defined = set(re.findall(r"^\*\*(SPEC-[A-Z]+-\d+)\*\*", specification, re.MULTILINE))
    cited_by_tests: set[str] = set()
    for path in TESTS:
        cited_by_tests |= rules_in(path.read_text())
    assert defined - cited_by_tests == set(), "rules that no test cites"
    cited = set(cited_by_tests)
    for path in [*SOURCES, *NATIVE]:
        for span in re.finditer(r"(SPEC-[A-Z]+)-(\d+)(?:\.\.(\d+))?", path.read_text()):
            name, first, last = span.group(1), int(span.group(2)), int(span.group(3) or span.group(2))
            cited |= {f"{name}-{number}" for number in range(first, last + 1)}
    assert cited - defined == set(), "citations of rules that the specification does not have"


def test_decisions_stand_in_order() -> None:
    """Each section has a hundred of its own, from D101 on; the next decision goes to the end of its section."""
    text = (ROOT / "docs" / "decisions.md").read_text()
    sections = [re.findall(r"^\*\*D(\d+)\. ", part, re.MULTILINE) for part in text.split("\n## ")[1:]]
    for place, numbers in enumerate(sections, start=1):
        assert numbers == [str(100 * place + n) for n in range(1, len(numbers) + 1)]
    defined = {number for numbers in sections for number in numbers}
    assert set(re.findall(r"\bD(\d{3,4})\b", text)) <= defined
    for path in [*SOURCES, *NATIVE, *TESTS, ROOT / "pyproject.toml", *(ROOT / "docs").glob("*.md")]:
        cited = re.findall(r"decisions\.md`?[,(\s]+\bD(\d+)\b", path.read_text())
        assert set(cited) <= defined, f"{path} cites decisions that are not there"
