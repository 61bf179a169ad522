"""Finds what could make a rule judge differently on two machines: clocks, chance, floats, addresses, the order of sets.

Rules use an allow-list of modules and of builtins. Whatever is not on it is a finding, so that nothing has to be
thought of in advance. Builtins keep their meaning: a name of theirs is bound to nothing else.
"""

import ast
import builtins
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from set_order import Facts, find_set_order, gather_facts

EXCEPTIONS = frozenset(
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, Exception) and not issubclass(value, OSError | Warning)
)
BUILTINS = EXCEPTIONS | {
    *("None", "True", "False", "NotImplemented"),
    *(
        "bool",
        "bytes",
        "bytearray",
        "memoryview",
        "dict",
        "frozenset",
        "int",
        "list",
        "set",
        "slice",
        "str",
        "tuple",
    ),
    *("object", "property", "staticmethod", "classmethod", "super", "type"),
    *(
        "abs",
        "all",
        "any",
        "callable",
        "divmod",
        "enumerate",
        "filter",
        "isinstance",
        "issubclass",
        "iter",
        "len",
    ),
    *("map", "max", "min", "next", "range", "reversed", "sorted", "sum", "zip"),
    # With a constant name only, see _call.
    *("getattr", "hasattr", "setattr"),
}
BY_NAME = {"getattr", "hasattr", "setattr"}
MODULE_NAMES = {"__name__"}
DUNDERS = {
    "__doc__",
    "__init__",
    "__name__",
    "__post_init__",
    "__set_name__",
    "__setattr__",
    "__struct_fields__",
}
ALWAYS_BAD = {
    "os": "the operating system",
    "sys": "the interpreter",
    "time": "a clock",
    "random": "chance",
    "secrets": "chance",
    "builtins": "all builtins",
}
FLOAT_METHODS = {"truediv", "fsum", "as_integer_ratio", "total_seconds"}
# What makes fresh keys, ids and salts: a client's act, before anything is signed.
DRAWING = {"create", "generate", "random_id", "token_bytes", "token_hex", "urandom"}
ALL = frozenset({"*"})
# Python's own, without what an interactive session adds; all are known, few are allowed.
KNOWN = frozenset(vars(builtins)) - {"copyright", "credits", "license", "_"} | {"__builtins__"}


@dataclass(frozen=True)
class Allowance:
    """What the files of a layer may use: module -> names of it (or ``*``), and builtins besides :data:`BUILTINS`.

    A module's name allows what lies below it too, where no longer name is listed.
    """

    modules: Mapping[str, frozenset[str]]
    builtins: frozenset[str] = frozenset()
    # Reads attributes by computed names: what builds subjects does, never a rule.
    reflection: bool = False
    # Writes texts for people with ``repr`` in them: what raises errors does, a rule has codes.
    texts: bool = False
    facts: Facts = field(default_factory=Facts)


def find_impurities(tree: ast.Module, allowance: Allowance) -> Iterator[tuple[int, str]]:
    """Line and description of everything in a file that a rule must not have, in the order of lines."""
    found = {*find_set_order(tree, allowance.facts)}
    fields = {id(target) for target in _field_names(tree)}
    for node in ast.walk(tree):
        if id(node) not in fields:
            found |= {(getattr(node, "lineno", 0), what) for what in _node(node, allowance)}
    found |= {*_class_fields(tree, allowance)}
    yield from sorted(found)


def check_text(text: str, allowance: Allowance) -> list[str]:
    """:func:`find_impurities` of a file by itself, its own facts included: ``line: what``."""
    tree = ast.parse(text)
    own = replace(allowance, facts=gather_facts({"own": tree}))
    return [f"{line}: {what}" for line, what in find_impurities(tree, own)]


def _field_names(tree: ast.Module) -> Iterator[ast.expr]:
    """The names of annotated fields: reached through an object, they hide no builtin."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (item.target for item in node.body if isinstance(item, ast.AnnAssign))


def _node(node: ast.AST, allowance: Allowance) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield from _module(alias.name, ALL, allowance)
                yield from _binding((alias.asname or alias.name).split(".")[0])
        case ast.ImportFrom(module=module, level=level, names=names):
            if level:
                yield "relative import"
            yield from _module(module or "", frozenset(alias.name for alias in names), allowance)
            for alias in names:
                yield from _binding(alias.asname or alias.name)
        case ast.Name(id=name, ctx=ast.Load()):
            yield from _name(name, allowance)
        case ast.Name(id=name) | ast.arg(arg=name):
            yield from _binding(name)
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield from _binding(name)
        case ast.ExceptHandler(type=None):
            yield "catches everything"
        case ast.Attribute():
            yield from _attribute(node, allowance)
        case ast.Call():
            yield from _call(node, allowance)
        case ast.Constant(value=float() | complex()):
            yield "a float"
        case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
            yield "true division makes a float"
        case ast.BinOp(op=ast.Pow(), right=right) | ast.AugAssign(op=ast.Pow(), value=right):
            if not (isinstance(right, ast.Constant) and isinstance(right.value, int)):
                yield "a power by what may be negative makes a float"
        case ast.FormattedValue(conversion=conversion) if conversion == ord("r") and not allowance.texts:
            yield "repr may show an address"
        case ast.Assert():
            yield "assert does nothing under python -O"
        case ast.Global():
            yield "state beside the state"
        case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
            yield "waits"


def _module(module: str, names: frozenset[str], allowance: Allowance) -> Iterator[str]:
    prefix = module
    while prefix and prefix not in allowance.modules:
        prefix = prefix.rpartition(".")[0]
    allowed = allowance.modules.get(prefix, frozenset())
    if not allowed:
        yield f"module {module} is not on the list"
    elif not allowed & ALL:
        for name in sorted(names - allowed):
            yield f"{module}.{name} is not on the list"


def _name(name: str, allowance: Allowance) -> Iterator[str]:
    if name in MODULE_NAMES:
        return
    if name in KNOWN and name not in BUILTINS | allowance.builtins:
        yield f"builtin {name} is not on the list"
    elif name.startswith("__") and name not in KNOWN:
        yield f"{name} tells of the interpreter"


def _binding(name: str) -> Iterator[str]:
    if name in KNOWN and not name.startswith("__"):
        yield f"{name} is given another meaning"


def _attribute(node: ast.Attribute, allowance: Allowance) -> Iterator[str]:
    name = node.attr
    if name.startswith("__") and name not in DUNDERS:
        yield f"{name} is not on the list"
    if name in FLOAT_METHODS:
        yield f"{name} makes a float"
    if name in DRAWING:
        yield f".{name} draws by chance"
    if name in ALWAYS_BAD:
        yield f".{name} may be {ALWAYS_BAD[name]}"


def _call(node: ast.Call, allowance: Allowance) -> Iterator[str]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name in BY_NAME and not allowance.reflection:
        constant = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
        if not constant:
            yield f"{name} by a computed name"
        elif isinstance(node.args[1].value, str):  # type: ignore[attr-defined]
            yield from _attribute(ast.Attribute(node.args[0], node.args[1].value), allowance)  # type: ignore[attr-defined]
    handed = [
        item.id for item in [*node.args, *[k.value for k in node.keywords]] if isinstance(item, ast.Name)
    ]
    if BY_NAME & set(handed) and not allowance.reflection:
        yield f"{sorted(BY_NAME & set(handed))[0]} is handed on"


def _class_fields(tree: ast.Module, allowance: Allowance) -> Iterator[tuple[int, str]]:
    """Fields of set type: they are encoded in the set's order. A class attribute that is no field is no matter."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or not node.bases:
            continue
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.dump(item.annotation):
                name = item.target.id if isinstance(item.target, ast.Name) else ""
                if allowance.facts.fields.get(name) == 1 and _is_encoded(node):
                    yield item.lineno, f"field {name} is a set and would be encoded in its order"


def _is_encoded(node: ast.ClassDef) -> bool:
    bases = {base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in node.bases}
    return bool(bases & {"Entity", "Body", "Struct"})
