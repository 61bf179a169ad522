"""Prints the shape of the package: layers, import cycles, long files, full rooms; exit status 1 where one is not well.

``python tests/structure/report.py``
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from layers import BASE, LAYERS, TIMED, layer_faults, layer_of
from source_graph import PACKAGE, ROOT, SUFFIXES, Graph, cycles, make_graph, read_sources, room_edges

FILE_LINES_MAX = 600
ROOM_FILES_MAX = 20
# What is known and will go: counted apart, and a test fails where one of these is no longer there.
PENDING_CYCLES: set[frozenset[str]] = set()
WATCHED = (PACKAGE, "native", "tests", "benchmarks")
WATCHED_SUFFIXES = (*SUFFIXES, ".c", ".h")


def watched_files(root: Path = ROOT) -> list[Path]:
    """The sources that the bounds hold for: product, tests, benchmarks; nothing that was generated beside a source."""
    found = []
    for folder in WATCHED:
        for path in sorted((root / folder).rglob("*")):
            generated = path.suffix == ".c" and path.with_suffix(".pyx").exists()
            if path.suffix in WATCHED_SUFFIXES and not generated:
                found.append(path)
    return found


def long_files(files: list[Path]) -> list[str]:
    """Files with more than :data:`FILE_LINES_MAX` lines."""
    counted = ((path, path.read_text().count("\n")) for path in files)
    return [f"{path.relative_to(ROOT)}: {lines}" for path, lines in counted if lines > FILE_LINES_MAX]


def full_rooms(files: list[Path]) -> list[str]:
    """Folders with more than :data:`ROOM_FILES_MAX` sources; a stub, ``.pxd`` or header goes with its source."""
    modules = {path.with_suffix("") for path in files if path.name != "__init__.py"}
    rooms = Counter(path.parent for path in modules)
    return [f"{room.relative_to(ROOT)}: {n}" for room, n in sorted(rooms.items()) if n > ROOM_FILES_MAX]


def all_cycles(graph: Graph) -> list[list[str]]:
    """Cycles between modules, and between a package's rooms, where a folder counts as one."""
    edges = graph.edges()
    found = cycles(edges)
    packages = sorted({module.rpartition(".")[0] for module in graph.modules} - {""})
    for package in packages:
        found += [cycle for cycle in cycles(room_edges(edges, package)) if cycle not in found]
    return found


def describe(graph: Graph) -> Iterator[str]:
    """A line a layer: how many modules it has, and what it does import."""
    count = Counter(layer_of(module) for module in graph.modules)
    used: dict[str, set[str]] = {layer: set() for layer in LAYERS}
    for item in graph.imports:
        layer, target = layer_of(item.importer), layer_of(item.target)
        if layer in used and target not in {layer, *BASE}:
            used[layer].add(target)
    for layer in LAYERS:
        below = ", ".join(name for name in [*LAYERS, *sorted(TIMED)] if name in used[layer])
        yield f"{layer:<10} {count[layer]:>3} modules   on {below or 'nothing'}"


def main() -> int:
    """Prints all of it."""
    graph = make_graph(read_sources())
    files = watched_files()
    sections = {
        "imports against the layers": sorted(layer_faults(graph)),
        "imports that cannot be seen through": [str(fault) for fault in graph.faults],
        "import cycles": [" -> ".join(c) for c in all_cycles(graph) if frozenset(c) not in PENDING_CYCLES],
        f"files over {FILE_LINES_MAX} lines": long_files(files),
        f"rooms over {ROOM_FILES_MAX} files": full_rooms(files),
    }
    print("layers, lowest first")
    for line in describe(graph):
        print(f"  {line}")
    for title, found in sections.items():
        print(f"{title}: {len(found) or 'none'}")
        for line in found:
            print(f"  {line}")
    return 1 if any(sections.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
