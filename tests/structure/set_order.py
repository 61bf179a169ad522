"""Finds where the order of a set could get out: in what all nodes must agree on it must not.

A set's order hangs on the hash seed and on its history. Instead of looking for loops, this looks at every expression
that is a set and lets through only uses that cannot see an order: membership, comparison, ``len``, ``sorted`` without
a key, the operations that make another set. All else is a finding: a loop, ``list(s)``, ``*s``, ``join``,
``dict.fromkeys(s)``, ``s.pop()``, an f-string, and handing the set to code that is not watched.

Which expressions are sets is told by displays, calls of ``set`` and ``frozenset``, operations on sets and on the views
of a dict, and by annotations, of parameters, variables, fields and results, through aliases and containers. Names are
followed within a function and its surroundings, fields and functions by name over all files that are watched. Where a
name is a set at one place it counts as one everywhere in its function.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

SET_TYPES = {"set", "frozenset", "Set", "FrozenSet", "AbstractSet", "MutableSet"}
WRAPPERS = {"Annotated", "Optional", "ClassVar", "Final", "Required", "NotRequired", "Union"}
SET_METHODS = {"union", "intersection", "difference", "symmetric_difference", "copy"}
QUIET_METHODS = SET_METHODS | {
    *("add", "discard", "remove", "clear", "update", "isdisjoint", "issubset", "issuperset"),
    *("intersection_update", "difference_update", "symmetric_difference_update"),
}
QUIET_CALLS = {"len", "sorted", "set", "frozenset", "bool", "min", "max", "sum", "any", "all", "isinstance"}
SET_OPERATORS = (ast.BitOr, ast.BitAnd, ast.BitXor, ast.Sub)
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
# How deep a set lies in a value: 1 is a set, 2 a container of sets, and so on; 0 is anything else.
SET = 1


@dataclass
class Facts:
    """What all watched files tell of their names: how deep a set lies behind a field, a function, a constant, an alias.

    ``takers`` are functions and classes of which a parameter or field is annotated as a set.
    """

    fields: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    takers: set[str] = field(default_factory=set)

    def size(self) -> int:
        """Grows as long as another reading finds more."""
        tables = (self.fields, self.functions, self.constants, self.aliases)
        return sum(sum(table.values()) for table in tables) + len(self.takers)


@dataclass
class Scope:
    """The names of one function, class or module; ``outer`` is where a name is looked for next."""

    names: dict[str, int]
    outer: "Scope | None"
    node: ast.AST

    def depth_of(self, name: str) -> int | None:
        """How deep a set lies behind a name, None where no scope binds it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None


def gather_facts(trees: Mapping[str, ast.Module]) -> Facts:
    """Reads all watched files until nothing more is found."""
    facts = Facts()
    before = -1
    while facts.size() > before:
        before = facts.size()
        for tree in trees.values():
            _Reader(tree, facts).gather()
    return facts


def find_set_order(tree: ast.Module, facts: Facts) -> Iterator[tuple[int, str]]:
    """Line and description of every use of a set that could see its order."""
    yield from _Reader(tree, facts).findings()


def _children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for name, value in ast.iter_fields(node):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield name, item


class _Reader:
    """Reads one file."""

    def __init__(self, tree: ast.Module, facts: Facts) -> None:
        self.tree, self.facts = tree, facts
        self.scopes: dict[ast.AST, Scope] = {}
        self._place(tree, Scope({}, None, tree))
        for _ in range(4):
            for node, scope in self.scopes.items():
                self._bind(node, scope)

    # Scopes.

    def _place(self, node: ast.AST, scope: Scope) -> None:
        """Gives every node the scope that its names are looked up in; a class body is none for its methods."""
        self.scopes[node] = scope
        inner = scope
        if isinstance(node, Function | Comprehension):
            outer = scope.outer if isinstance(scope.node, ast.ClassDef) and scope.outer is not None else scope
            inner = Scope({}, outer, node)
        elif isinstance(node, ast.ClassDef):
            inner = Scope({}, scope, node)
        for name, child in _children(node):
            outside = name in {"decorator_list", "returns", "bases", "keywords"} and inner is not scope
            self._place(child, scope if outside else inner)

    def _bind(self, node: ast.AST, scope: Scope) -> None:
        """Notes what a statement or a parameter binds."""
        match node:
            case ast.arg(arg=name, annotation=annotation):
                self._set(scope, name, self.annotation(annotation))
            case ast.arguments():
                self._bind_defaults(node, scope)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._target(target, self.depth(value), scope)
            case ast.AnnAssign(target=target, annotation=annotation, value=value):
                told = self.annotation(annotation)
                self._target(target, max(told, self.depth(value) if value is not None else 0), scope)
            case ast.NamedExpr(target=target, value=value):
                self._target(target, self.depth(value), self._function_scope(scope))
            case ast.AugAssign(target=target, value=value, op=op) if isinstance(op, SET_OPERATORS):
                self._target(target, SET if self._is_set_side(value) else 0, scope)
            case ast.For(target=target, iter=iterated) | ast.comprehension(target=target, iter=iterated):
                self._target(target, self._inside(iterated), scope)
            case ast.ImportFrom(names=names):
                for alias in names:
                    self._set(scope, alias.asname or alias.name, self.facts.constants.get(alias.name, 0))

    def _bind_defaults(self, node: ast.arguments, scope: Scope) -> None:
        """A parameter whose default is a set holds one, whatever its annotation says."""
        positional = [*node.posonlyargs, *node.args]
        defaults = node.defaults
        pairs = [*zip(positional[len(positional) - len(defaults) :], defaults, strict=True)]
        pairs += [(arg, value) for arg, value in zip(node.kwonlyargs, node.kw_defaults, strict=True) if value]
        for argument, default in pairs:
            self._set(scope, argument.arg, self.depth(default))

    @staticmethod
    def _function_scope(scope: Scope) -> Scope:
        while isinstance(scope.node, Comprehension) and scope.outer is not None:
            scope = scope.outer
        return scope

    @staticmethod
    def _set(scope: Scope, name: str, depth: int) -> None:
        scope.names[name] = max(depth, scope.names.get(name, 0))

    def _target(self, target: ast.expr, depth: int, scope: Scope) -> None:
        match target:
            case ast.Name(id=name):
                self._set(scope, name, depth)
            case ast.Attribute(attr=name) if depth:
                self.facts.fields[name] = max(depth, self.facts.fields.get(name, 0))
            case ast.Subscript(value=value) if depth:
                self._target(value, depth + 1, scope)
            case ast.Starred(value=value):
                self._target(value, depth, scope)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                for element in elements:
                    self._target(element, depth - 1 if depth > SET else 0, scope)

    # Facts.

    def gather(self) -> None:
        """Adds to the facts what this file has."""
        for node in ast.walk(self.tree):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    self._gather_function(node)
                case ast.ClassDef():
                    self._gather_class(node)
        for name, depth in self.scopes[self.tree].names.items():
            if depth:
                self.facts.constants[name] = depth
        for statement in self.tree.body:
            match statement:
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    self._gather_alias(name, value)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self._gather_alias(name, value)

    def _gather_alias(self, name: str, value: ast.expr) -> None:
        if isinstance(value, ast.Subscript | ast.Name | ast.Attribute | ast.BinOp):
            depth = self.annotation(value)
            if depth:
                self.facts.aliases[name] = depth

    def _gather_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        depth = self.annotation(node.returns)
        if node.returns is None:
            returns = [item for item in ast.walk(node) if isinstance(item, ast.Return) and item.value]
            depth = max((self.depth(item.value) for item in returns if item.value is not None), default=0)
        if depth:
            decorators = {_name(item) for item in node.decorator_list}
            table = (
                self.facts.fields if decorators & {"property", "cached_property"} else self.facts.functions
            )
            table[node.name] = max(depth, table.get(node.name, 0))
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if any(self.annotation(item.annotation) == SET for item in parameters):
            self.facts.takers.add(node.name)

    def _gather_class(self, node: ast.ClassDef) -> None:
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                depth = self.annotation(item.annotation)
                if depth:
                    self.facts.fields[item.target.id] = max(depth, self.facts.fields.get(item.target.id, 0))
                    self.facts.takers.add(node.name)
        for item in node.body:
            if (
                isinstance(item, ast.FunctionDef)
                and item.name == "__init__"
                and "__init__" in self.facts.takers
            ):
                self.facts.takers.add(node.name)

    # How deep a set lies in an annotation or an expression.

    def annotation(self, node: ast.expr | None) -> int:
        """How deep a set lies in values of an annotated type."""
        match node:
            case ast.Constant(value=str(text)):
                try:
                    return self.annotation(ast.parse(text, mode="eval").body)
                except SyntaxError:
                    return 0
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return SET if name in SET_TYPES else self.facts.aliases.get(name, 0)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return max(self.annotation(left), self.annotation(right))
            case ast.Subscript(value=value, slice=inner):
                return self._generic(_name(value), inner)
            case ast.List(elts=elements):
                return max((self.annotation(element) for element in elements), default=0)
        return 0

    def _generic(self, name: str, inner: ast.expr) -> int:
        if name in SET_TYPES or self.facts.aliases.get(name) == SET:
            return SET
        arguments = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if name in {"type", "Literal"}:
            return 0
        if name == "Annotated":
            arguments = arguments[:1]
        deepest = max((self.annotation(argument) for argument in arguments), default=0)
        return deepest if name in WRAPPERS or not deepest else deepest + 1

    def depth(self, node: ast.expr | None) -> int:
        """How deep a set lies in an expression's value."""
        match node:
            case ast.Set() | ast.SetComp():
                return SET
            case ast.Name(id=name):
                return self.scopes[node].depth_of(name) or 0
            case ast.Attribute(attr=name):
                return self.facts.fields.get(name, 0)
            case ast.Call():
                return self._call_depth(node)
            case ast.BinOp(left=left, op=op, right=right):
                sets = self._is_set_side(left) or self._is_set_side(right)
                return (
                    SET
                    if isinstance(op, SET_OPERATORS) and sets
                    else max(self.depth(left), self.depth(right))
                )
            case ast.BoolOp(values=values):
                return max(self.depth(value) for value in values)
            case ast.IfExp(body=body, orelse=orelse):
                return max(self.depth(body), self.depth(orelse))
            case ast.NamedExpr(value=value) | ast.Await(value=value) | ast.Starred(value=value):
                return self.depth(value)
            case ast.Subscript(value=value, slice=index):
                return self.depth(value) if isinstance(index, ast.Slice) else self._peel(self.depth(value))
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                return self._wrap(max((self.depth(element) for element in elements), default=0))
            case ast.Dict(keys=keys, values=values):
                return self._wrap(max((self.depth(item) for item in [*keys, *values]), default=0))
            case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element):
                return self._wrap(self.depth(element))
            case ast.DictComp(key=key, value=value):
                return self._wrap(max(self.depth(key), self.depth(value)))
        return 0

    @staticmethod
    def _wrap(depth: int) -> int:
        return depth + 1 if depth else 0

    @staticmethod
    def _peel(depth: int) -> int:
        return max(depth - 1, 0)

    def _inside(self, node: ast.expr) -> int:
        return self._peel(self.depth(node))

    def _is_set_side(self, node: ast.expr) -> bool:
        """A set, or a view of a dict's keys or entries: an operation on one makes a set."""
        is_view = isinstance(node, ast.Call) and _name(node.func) in {"keys", "items"} and not node.args
        return self.depth(node) == SET or is_view

    def _call_depth(self, node: ast.Call) -> int:
        name = _name(node.func)
        if isinstance(node.func, ast.Attribute):
            held = self.depth(node.func.value)
            if held == SET:
                return SET if name in SET_METHODS else 0
            if held and name in {"get", "pop", "setdefault", "popitem", "__getitem__"}:
                return self._peel(held)
            if held and name in {"values", "items", "keys", "copy"}:
                return held
            return max(self.facts.functions.get(name, 0), self._peel(self.facts.fields.get(name, 0)))
        if name in {"set", "frozenset"} or self.facts.aliases.get(name) == SET:
            return SET
        if name in {"defaultdict", "map"}:
            return SET + 1 if node.args and _name(node.args[0]) in {"set", "frozenset"} else 0
        if name in {"list", "tuple", "sorted", "iter", "reversed", "dict"}:
            return max((held for held in map(self.depth, node.args) if held > SET), default=0)
        called = self.scopes[node].depth_of(name)
        return max(self._peel(called or 0), self.facts.functions.get(name, 0))

    # Uses.

    def findings(self) -> Iterator[tuple[int, str]]:
        """Every use of a set that is not known to be blind to order."""
        for parent in ast.walk(self.tree):
            for place, child in _children(parent):
                if isinstance(child, ast.expr) and self._is_value(child) and self.depth(child) == SET:
                    trouble = self._trouble(parent, place, child)
                    if trouble:
                        yield child.lineno, trouble
            if isinstance(parent, ast.ClassDef) and any(_name(base) in SET_TYPES for base in parent.bases):
                yield parent.lineno, "a class derived from a set"

    @staticmethod
    def _is_value(node: ast.expr) -> bool:
        return not hasattr(node, "ctx") or isinstance(node.ctx, ast.Load)

    def _trouble(self, parent: ast.AST, place: str, child: ast.expr) -> str:
        match parent:
            case ast.For() | ast.AsyncFor() | ast.comprehension() if place == "iter":
                return "iterates a set"
            case ast.Call():
                return self._call_trouble(parent)
            case ast.Attribute(attr=name):
                return "" if name in QUIET_METHODS else f".{name} of a set"
            case ast.keyword(value=value):
                return self._keyword_trouble(value)
            case ast.Assign(targets=targets):
                unpacked = any(isinstance(target, ast.Tuple | ast.List) for target in targets)
                return "unpacks a set" if unpacked else ""
            case ast.Return():
                return self._return_trouble(parent)
            case ast.Starred():
                return "unpacks a set"
            case ast.FormattedValue():
                return "a set in a text"
            case ast.Yield() | ast.YieldFrom() | ast.Lambda():
                return "gives a set to whoever asks"
            case ast.BinOp(op=op) if not isinstance(op, SET_OPERATORS):
                return "an operator that is none of sets"
        return ""

    def _call_trouble(self, call: ast.Call) -> str:
        name = _name(call.func)
        if isinstance(call.func, ast.Name) and name in QUIET_CALLS:
            keyed = any(item.arg == "key" for item in call.keywords)
            return f"{name} of a set by a key leaves ties in the set's order" if keyed else ""
        if (
            isinstance(call.func, ast.Attribute)
            and self.depth(call.func.value) == SET
            and name in QUIET_METHODS
        ):
            return ""
        return "" if self._takes_sets(name) else f"hands a set to {name or 'a call'}"

    def _keyword_trouble(self, value: ast.expr) -> str:
        for call in ast.walk(self.tree):
            if isinstance(call, ast.Call) and any(item.value is value for item in call.keywords):
                return self._call_trouble(call)
        return ""

    def _takes_sets(self, name: str) -> bool:
        return name in self.facts.takers or self.facts.aliases.get(name) == SET

    def _return_trouble(self, node: ast.Return) -> str:
        scope: Scope | None = self.scopes[node]
        while scope is not None and not isinstance(scope.node, ast.FunctionDef | ast.AsyncFunctionDef):
            scope = scope.outer
        told = scope.node.returns if scope is not None else None
        return "" if told is None or self.annotation(told) == SET else "returns a set as something else"


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""
