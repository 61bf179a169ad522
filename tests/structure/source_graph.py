"""Which module of the package imports which, read from the sources: Python, Cython and stubs, nothing is run.

Every way of importing counts: ``import`` and ``from … import`` at any depth, relative ones, names that a package only
passes on, ``import_module`` and ``__import__``, tables of names behind a ``__getattr__``, and Cython's ``cimport``. An
import inside a function or under ``TYPE_CHECKING`` counts like any other. It does not fail when it runs, but whoever
reads the module has to know the other one all the same, and moving it into a function would hide any cycle.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "fastledger"
SUFFIXES = (".py", ".pyi", ".pyx", ".pxd")
CYTHON_SUFFIXES = (".pyx", ".pxd")
IMPORTERS = {"import_module", "__import__"}
# What could import anything without naming it: not to be used in the package at all.
OPAQUE_MODULES = {"pkgutil", "runpy", "imp", "zipimport"}
OPAQUE_CALLS = {"exec", "eval", "compile"}


@dataclass(frozen=True)
class Source:
    """One file of a module: its dotted name, whether it is a package's ``__init__``, and its text."""

    module: str
    is_package: bool
    suffix: str
    text: str
    path: str


@dataclass(frozen=True)
class Import:
    """That ``importer`` imports ``target``, in which line, and how (``relative``, ``computed`` …) if that matters."""

    importer: str
    target: str
    line: int
    how: str = ""


@dataclass(frozen=True)
class Fault:
    """Something in a source that the graph could not see through, or that the house does not have."""

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


@dataclass(frozen=True)
class Graph:
    """All imports between modules of the package, and what was found fault with while reading them."""

    modules: frozenset[str]
    imports: tuple[Import, ...]
    faults: tuple[Fault, ...]

    def edges(self) -> dict[str, set[str]]:
        """Module -> the modules of the package that it imports, the package's own façade left out as a target."""
        found: dict[str, set[str]] = {module: set() for module in self.modules}
        for item in self.imports:
            if item.target != item.importer:
                found[item.importer].add(item.target)
        return found


def read_sources(root: Path = ROOT) -> list[Source]:
    """All sources of the package below ``root``."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*")):
        if path.suffix in SUFFIXES and "__pycache__" not in path.parts:
            parts = list(path.relative_to(root).with_suffix("").parts)
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            found.append(Source(name, is_package, path.suffix, path.read_text(), str(path.relative_to(root))))
    return found


def make_graph(sources: Sequence[Source]) -> Graph:
    """The graph of some sources; a name is one of the package if its first part is :data:`PACKAGE`."""
    modules = frozenset(source.module for source in sources)
    passed_on = {source.module: _passed_on(source, modules) for source in sources if source.suffix == ".py"}
    imports: list[Import] = []
    faults: list[Fault] = []
    for source in sources:
        if source.suffix in CYTHON_SUFFIXES:
            found = list(_cython_imports(source, modules, faults))
        else:
            found = list(_PythonReader(source, modules, passed_on, faults).read())
        for item in found:
            imports.append(item)
            imports += _parents(item, modules)
    return Graph(modules, tuple(dict.fromkeys(imports)), tuple(faults))


def _parents(item: Import, modules: frozenset[str]) -> Iterator[Import]:
    """The packages whose ``__init__`` runs because a module inside them is imported from outside them."""
    parent = item.target.rpartition(".")[0]
    while parent and parent != PACKAGE:
        if parent in modules and not f"{item.importer}.".startswith(f"{parent}."):
            yield Import(item.importer, parent, item.line, "parent")
        parent = parent.rpartition(".")[0]


def _passed_on(source: Source, modules: frozenset[str]) -> dict[str, str]:
    """Names that a package's ``__init__`` takes from elsewhere, imported or in a table of strings -> their home."""
    if not source.is_package:
        return {}
    homes: dict[str, str] = {}
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            home = _absolute(source, node.level, node.module)
            homes |= {alias.asname or alias.name: home for alias in node.names}
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    for target in _named_modules(str(value.value), source, modules):
                        homes.setdefault(str(key.value), target)
    return homes


def _absolute(source: Source, level: int, name: str | None) -> str:
    if level == 0:
        return name or ""
    parts = source.module.split(".")
    kept = len(parts) - level + source.is_package
    return ".".join([*parts[: max(kept, 0)], *([name] if name else [])])


def _named_modules(text: str, source: Source, modules: frozenset[str]) -> list[str]:
    """The module that a string names, in full, without the package's name, or beside this module; else nothing."""
    if not re.fullmatch(r"\.*\w+(\.\w+)*", text):
        return []
    bare = text.lstrip(".")
    package = source.module if source.is_package else source.module.rpartition(".")[0]
    tried = [bare, f"{PACKAGE}.{bare}", f"{package}.{bare}"]
    return [name for name in dict.fromkeys(tried) if name in modules and name != PACKAGE][:1]


class _PythonReader:
    """Reads the imports of one Python source."""

    def __init__(
        self,
        source: Source,
        modules: frozenset[str],
        passed_on: Mapping[str, Mapping[str, str]],
        faults: list[Fault],
    ) -> None:
        self._source, self._modules, self._passed_on, self._faults = source, modules, passed_on, faults
        self._tree = ast.parse(source.text)
        self._importers = set(IMPORTERS)
        self._called: set[ast.AST] = set()

    def read(self) -> Iterator[Import]:
        """All imports of the source, those that a name was computed for included."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.ImportFrom) and node.module == "importlib":
                self._importers |= {a.asname for a in node.names if a.name in IMPORTERS and a.asname}
            elif isinstance(node, ast.Call):
                self._called.add(node.func)
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._import(node, alias.name)
            elif isinstance(node, ast.ImportFrom):
                yield from self._import_from(node)
            elif isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                self._reference(node)

    def _fault(self, node: ast.expr | ast.stmt, what: str) -> None:
        self._faults.append(Fault(self._source.path, node.lineno, what))

    def _import(self, node: ast.expr | ast.stmt, name: str, how: str = "") -> Iterator[Import]:
        if name.split(".")[0] in OPAQUE_MODULES:
            self._fault(node, f"{name} can import anything")
        if name.split(".")[0] != PACKAGE:
            return
        while name not in self._modules and name:
            name = name.rpartition(".")[0]
        if name:
            yield Import(self._source.module, name, node.lineno, how)
        else:
            self._fault(node, "imports a module that there is not")

    def _import_from(self, node: ast.ImportFrom) -> Iterator[Import]:
        base = _absolute(self._source, node.level, node.module)
        how = "relative" if node.level else ""
        if node.level:
            self._fault(node, "relative import")
        for alias in node.names:
            full = f"{base}.{alias.name}"
            if full in self._modules:
                yield from self._import(node, full, how)
                continue
            yield from self._import(node, base, how)
            home = self._passed_on.get(base, {}).get(alias.name)
            if home is not None:
                yield from self._import(node, home, "passed on")

    def _call(self, node: ast.Call) -> Iterator[Import]:
        name = _last_name(node.func)
        if name not in self._importers:
            return
        argument = node.args[0] if node.args else None
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            text = argument.value
            if text.startswith("."):
                package = node.args[1] if len(node.args) > 1 else None
                base = package.value if isinstance(package, ast.Constant) else self._source.module
                text = f"{base}.{text.lstrip('.')}"
            yield from self._import(node, text, "computed")
            return
        found = self._strings()
        if not found:
            self._fault(node, "imports a module whose name no string in this file has")
        for target in found:
            yield from self._import(node, target, "computed")

    def _strings(self) -> list[str]:
        """Every module that some string in the source names: what a computed import may be asked for."""
        found: list[str] = []
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += _named_modules(node.value, self._source, self._modules)
        return list(dict.fromkeys(found))

    def _reference(self, node: ast.Name | ast.Attribute) -> None:
        name = _last_name(node)
        if name in self._importers and node not in self._called:
            self._fault(node, f"{name} is handed on")
        elif isinstance(node, ast.Name) and name in OPAQUE_CALLS:
            self._fault(node, f"{name} can import anything")
        elif isinstance(node, ast.Attribute) and name == "modules" and _last_name(node.value) == "sys":
            self._fault(node, "sys.modules goes round imports")


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


_CYTHON_NOISE = re.compile(
    r'"""(?:\\.|[^\\])*?"""|'
    + r"'''(?:\\.|[^\\])*?'''|"
    + r'"(?:\\.|[^"\\\n])*"|'
    + r"'(?:\\.|[^'\\\n])*'|#[^\n]*"
)
_CYTHON_FROM = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+c?import[ \t]*(\([^)]*\)|[^\n]*)", re.MULTILINE)
_CYTHON_IMPORT = re.compile(r"^[ \t]*c?import[ \t]+([^\n]+)", re.MULTILINE)


def _cython_imports(source: Source, modules: frozenset[str], faults: list[Fault]) -> Iterator[Import]:
    """Reads ``import``, ``cimport`` and both with ``from``; strings and comments are blanked first."""
    text = _CYTHON_NOISE.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), source.text)
    text = text.replace("\\\n", "  ")

    def line_of(at: int) -> int:
        return text.count("\n", 0, at) + 1

    def found(name: str, at: int) -> Iterator[Import]:
        if name.startswith("."):
            faults.append(Fault(source.path, line_of(at), "relative import"))
            name = _absolute(source, len(name) - len(name.lstrip(".")), name.lstrip("."))
        if name.split(".")[0] == PACKAGE:
            while name not in modules and "." in name:
                name = name.rpartition(".")[0]
            yield Import(source.module, name, line_of(at))

    for match in _CYTHON_FROM.finditer(text):
        base, names = match.group(1), match.group(2).strip("() \n")
        for name in (part.split() for part in names.split(",")):
            full = f"{base}.{name[0]}" if name else base
            yield from found(full if full in modules else base, match.start())
    for match in _CYTHON_IMPORT.finditer(text):
        for name in (part.split() for part in match.group(1).split(",")):
            if name:
                yield from found(name[0], match.start())
    for match in re.finditer(r"\b(import_module|__import__|exec|eval)\s*\(", text):
        faults.append(Fault(source.path, line_of(match.start()), f"{match.group(1)} in Cython"))


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """A shortest cycle through each group of modules that import one another, in the order of importing."""
    found = []
    for group in _components(edges):
        first = min(group)
        if len(group) > 1 or first in edges.get(first, set()):
            found.append(_shortest_cycle(first, {name: edges[name] & group for name in group}))
    return sorted(found)


def _components(edges: Mapping[str, set[str]]) -> Iterator[set[str]]:
    """Strongly connected components, by what is reached forwards and backwards (the graph is small)."""
    backwards: dict[str, set[str]] = {name: set() for name in edges}
    for name, targets in edges.items():
        for target in targets:
            backwards.setdefault(target, set()).add(name)
    left = set(edges)
    while left:
        start = min(left)
        group = (_reached(start, edges) & _reached(start, backwards)) | {start}
        yield group
        left -= group


def _reached(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for target in edges.get(todo.pop(), set()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


def _shortest_cycle(start: str, edges: Mapping[str, set[str]]) -> list[str]:
    """Breadth first from ``start`` back to it."""
    paths = [[start]]
    seen: set[str] = set()
    while paths:
        path = paths.pop(0)
        for target in sorted(edges[path[-1]]):
            if target == start:
                return [*path, start]
            if target not in seen:
                seen.add(target)
                paths.append([*path, target])
    return []


def room_edges(edges: Mapping[str, set[str]], package: str) -> dict[str, set[str]]:
    """The graph between what lies directly in a package: its modules, and each folder as one."""
    depth = package.count(".") + 2

    def child(module: str) -> str | None:
        return ".".join(module.split(".")[:depth]) if module.startswith(f"{package}.") else None

    found: dict[str, set[str]] = {}
    for module, targets in edges.items():
        own = child(module)
        if own is not None:
            children = {child(target) for target in targets} - {None, own}
            found.setdefault(own, set()).update(name for name in children if name is not None)
    return found
