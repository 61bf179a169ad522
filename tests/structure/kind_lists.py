"""Finds second lists of the kinds of transactions: what knows several kinds beside the subjects that declare them.

Everything about a kind is derived from its declaration. A file that names kinds, by their names or by their bodies,
in one collection, union or ``match``, or three of them anywhere, will be forgotten when the next subject comes.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

NAMES_MAX = 2
_COLLECTIONS = (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.BinOp, ast.BoolOp, ast.Compare, ast.Call)
_PATTERNS = (ast.MatchOr, ast.Match)


@dataclass(frozen=True)
class Kinds:
    """The kinds that there are: name -> the module that declares it, and the name of a body's class -> the kind."""

    modules: Mapping[str, str]
    bodies: Mapping[str, str]

    def foreign(self, module: str) -> "Kinds":
        """Those that another module declares."""
        modules = {name: home for name, home in self.modules.items() if home != module}
        return Kinds(modules, {body: name for body, name in self.bodies.items() if name in modules})


def second_lists(text: str, module: str, kinds: Kinds) -> Iterator[str]:
    """Describes, by lines, where a Python source names several kinds that are not its own."""
    foreign = kinds.foreign(module)
    tree = ast.parse(text)
    documentation = {id(value) for value in _docstrings(tree)}
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in documentation:
            named |= _in_text(node.value, foreign)
            if len(_in_text(node.value, foreign)) > 1:
                yield f"{node.lineno}: a text that lists kinds"
        elif isinstance(node, _COLLECTIONS):
            found = set().union(*(_named(child, foreign) for child in _members(node)))
            if len(found) > 1:
                yield f"{node.lineno}: {', '.join(sorted(found))} in one {type(node).__name__}"
        elif isinstance(node, _PATTERNS):
            found = set().union(*(_named(child, foreign) for child in ast.walk(node)))
            if len(found) > 1:
                yield f"{_line(node)}: {', '.join(sorted(found))} in one {type(node).__name__}"
    if len(named) > NAMES_MAX:
        yield f"1: names {len(named)} kinds, {', '.join(sorted(named))}"


def second_lists_of_native(text: str, kinds: Kinds) -> Iterator[str]:
    """Describes where a source in Cython or C names a kind: none has anything to do there."""
    for name in kinds.modules:
        for match in re.finditer(rf"[\"']{re.escape(name)}[\"']", text):
            yield f"{text.count(chr(10), 0, match.start()) + 1}: names the kind {name}"


def imported_bodies(text: str, module: str, kinds: Kinds) -> set[str]:
    """The kinds of others whose bodies a source imports: builders of transactions do."""
    foreign = kinds.foreign(module)
    found = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom))
    return {foreign.bodies[alias.name] for node in found for alias in node.names if alias.name in foreign.bodies}


def _docstrings(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def _members(node: ast.AST) -> Iterator[ast.AST]:
    """What stands side by side in a collection, nested unions and entries of a dict included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.keyword | ast.Starred):
            yield child.value
        elif isinstance(child, ast.Tuple | ast.List | ast.BinOp):
            yield from _members(child)
        else:
            yield child


def _named(node: ast.AST, kinds: Kinds) -> set[str]:
    match node:
        case ast.Constant(value=value):
            return _in_text(value, kinds)
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in kinds.bodies:
            return {kinds.bodies[name]}
    return set()


def _in_text(value: object, kinds: Kinds) -> set[str]:
    if not isinstance(value, str):
        return set()
    return {name for name in kinds.modules if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", value)}


def _line(node: ast.AST) -> int:
    return min(child.lineno for child in ast.walk(node) if hasattr(child, "lineno"))
