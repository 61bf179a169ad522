"""The one surface of ledgers and clients: which methods stand where, and how one class of a pair is made of the other.

``python tests/structure/surface.py`` writes the generated modules anew; ``test_surface.py`` fails where they differ
from what their sources say, where a substitution goes unused, and where a public method is on one class and nobody
has said why.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINE_CHARS_MAX = 110

# Public methods that are deliberately on some of the four classes alone. Whatever is not named here is on all four.
LEDGER_PAIR = {
    "create": "makes a directory; a client has none",
    "join": "makes a directory; a client has none",
    "open": "opens a directory; a client connects",
    "reindex": "rebuilds a directory's indexes; on a node it is done while the node is stopped",
    "export_blocks": "a block file may be as large as the chain: it is written where the chain is",
    "collect_orphans": "a node collects by its own configuration",
    "block": "a client takes blocks in by following them",
    "authorise_read": "a client reads by one call, since a grant is worth nothing away from the envelopes",
    "submit_nowait": "a future of what is queued here; over a network the queue is the node's",
}
LEDGER = {
    "height": "at hand without disk or network, in this class alone: elsewhere tip() asks",
    "head": "as height",
    "transaction_count": "as height",
    "state_root": "as height",
    "first_height": "as height",
    "halted": "for nodes, which have to tell their clients",
    "release_needed": "for nodes, which have to tell their clients",
    "queue_depth": "for nodes, which have to tell their clients",
    "begin": "for nodes: every stage of a batch as a future",
    "begin_sequence": "for nodes: a batch as it came over the wire",
    "add_listener": "for nodes: blocks as they become durable, on the thread that syncs",
    "waking": "for nodes and AsyncLedger: what has a follower look again",
    "cursor_at": "for AsyncLedger: a place in the chain that is read without waiting",
    "check_open": "for AsyncLedger, which waits by itself",
    "open_uploads": "for nodes: envelopes that come in pieces",
    "blob_reader": "for nodes: an envelope in chunks",
    "blob_size": "for nodes: an envelope in chunks",
    "grant_read": "for nodes: a read that was submitted with others",
    "check_permitted": "for nodes: a read that is resumed",
    "shared_snapshot": "for nodes: many reads of one moment, on one thread",
    "block_and_first_seq": "for nodes: blocks that are followed",
    "erase_again": "for nodes: envelopes that come from elsewhere",
}
CLIENT_PAIR = {
    "connect": "finds a node; a ledger is opened",
    "url": "where the node is",
    "run_job": "a node runs long work as jobs, which a ledger's methods are themselves",
    "jobs": "as run_job",
    "job": "as run_job",
    "cancel_job": "as run_job",
    "node_status": "of the process around a ledger",
    "reload": "of the process around a ledger",
    "stop": "of the process around a ledger",
    "federation_status": "of the other organisations' nodes, which the node knows and its ledger does not",
    "peers": "as federation_status",
    "add_peer": "as federation_status",
    "ban": "as federation_status",
    "unban": "as federation_status",
    "mine": "as federation_status",
}
ASYNC_CLIENT = {"fetch_genesis": "a part of connect", "options": "what connect was given"}
ASYNC_LEDGER = {"ledger": "what it wraps, for nodes"}
# Without disk or network, so that they are no coroutines anywhere.
AT_HAND = {"genesis", "chain_id", "verify_statement", "url"}
# Of AsyncLedger, written by hand: through a thread they would hold one for as long as they wait.
BY_HAND = {"submit", "submit_nowait", "submit_stream", "follow", "follow_pages", "wait_for"}


@dataclass(frozen=True)
class Substitution:
    """A text in a source's docstring and what stands for it in the generated class."""

    old: str
    new: str


@dataclass(frozen=True)
class Twin:
    """A module that is generated: one method for each public one of the ``sources`` (module path, class name)."""

    target: str
    head: str
    sources: tuple[tuple[str, str], ...]
    make: "type[Maker]"
    left_out: frozenset[str] = frozenset()
    substitutions: tuple[Substitution, ...] = ()
    extra_imports: tuple[str, ...] = ()


@dataclass
class Method:
    """A public method of a source, as its module has it."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    text: str

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def is_classmethod(self) -> bool:
        return self._has("classmethod")

    @property
    def is_property(self) -> bool:
        return self._has("property")

    def _has(self, decorator: str) -> bool:
        return any(isinstance(each, ast.Name) and each.id == decorator for each in self.node.decorator_list)

    def source(self, node: ast.AST) -> str:
        found = ast.get_source_segment(self.text, node)
        assert found is not None
        return " ".join(found.split()) if "\n" in found else found

    @property
    def returns(self) -> str:
        assert self.node.returns is not None, self.name
        return self.source(self.node.returns).strip('"')

    @property
    def documentation(self) -> str:
        first = self.node.body[0]
        assert isinstance(first, ast.Expr), f"{self.name} has no docstring"
        return ast.get_source_segment(self.text, first) or ""

    def parameters(self) -> list[tuple[str, str]]:
        """Name -> text of every parameter but the first, with the markers between them."""
        arguments = self.node.args
        assert not arguments.posonlyargs
        found: list[tuple[str, str]] = []
        plain = arguments.args[1:]
        defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
        for each, default in zip(plain, defaults, strict=True):
            found.append((each.arg, self._one(each, default)))
        if arguments.vararg:
            found.append(("*" + arguments.vararg.arg, "*" + self._one(arguments.vararg, None)))
        elif arguments.kwonlyargs:
            found.append(("*", "*"))
        for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            found.append((each.arg, self._one(each, default)))
        if arguments.kwarg:
            found.append(("**" + arguments.kwarg.arg, "**" + self._one(arguments.kwarg, None)))
        return found

    def _one(self, argument: ast.arg, default: ast.expr | None) -> str:
        assert argument.annotation is not None
        text = f"{argument.arg}: {self.source(argument.annotation)}"
        return text if default is None else f"{text} = {self.source(default)}"

    def passed(self) -> list[str]:
        """How the parameters are passed on."""
        found, by_name = [], False
        for name, _ in self.parameters():
            if name == "*":
                by_name = True
            elif name.startswith("**"):
                found.append(name)
            elif name.startswith("*"):
                found.append(name)
                by_name = True
            else:
                found.append(f"{name}={name}" if by_name else name)
        return found


class Maker:
    """Writes one method of a generated class."""

    def make(self, method: Method) -> str:
        """Returns the text of the method of the twin."""
        raise AssertionError(type(self))

    def documentation(self, method: Method) -> str:
        return method.documentation


def wrapped(opening: str, items: list[str], closing: str, indent: int) -> str:
    """``opening(items)closing`` as ruff would lay it out."""
    pad = " " * indent
    line = f"{pad}{opening}{', '.join(items)}{closing}"
    if len(line) <= LINE_CHARS_MAX:
        return line
    inner = f"{pad}    {', '.join(items)}"
    if len(inner) <= LINE_CHARS_MAX and not any(item.startswith("**") or item == "*" for item in items):
        return f"{pad}{opening}\n{inner}\n{pad}{closing}"
    listed = "".join(f"{pad}    {item},\n" for item in items)
    return f"{pad}{opening}\n{listed}{pad}{closing}"


def outer(opening: str, called: str, passed: list[str], others: list[str]) -> str:
    """``opening(called(passed), others)`` in a method's body, each call broken where it has to be."""
    call = f"{called}{', '.join(passed)})"
    line = f"        {opening}{', '.join([call, *others])})"
    if len(line) <= LINE_CHARS_MAX:
        return line
    inner = f"            {', '.join([call, *others])}"
    if len(inner) <= LINE_CHARS_MAX:
        return f"        {opening}\n{inner}\n        )"
    listed = "".join(f"            {other},\n" for other in others)
    call = wrapped(called, passed, ")", 12)
    return f"        {opening}\n{call}{',' if others else ''}\n{listed}        )"


STREAM = "Iterable[bytes | Transaction]"
CANCEL = ("cancel", "cancel: threading.Event | None = None")


def _iterated(returns: str) -> str | None:
    """What an iterator or generator yields; None for a method that returns once."""
    for kind in ("Iterator[", "Generator[", "AsyncGenerator["):
        if returns.startswith(kind):
            inner = returns.removeprefix(kind).removesuffix("]")
            return inner.split(", None")[0]
    return None


class AsyncOfSync(Maker):
    """A coroutine over each method of a ledger, run on another thread than the loop's."""

    def make(self, method: Method) -> str:
        parameters = [text for name, text in method.parameters() if name != "cancel"]
        passed = [each for each in method.passed() if not each.startswith(("cancel=", "progress"))]
        head = "cls" if method.is_classmethod else "self"
        opening = wrapped(f"async def {method.name}(", [head, *parameters], f") -> {method.returns}:", 4)
        lines = ["    @classmethod"] if method.is_classmethod else []
        lines += [opening, f"        {method.documentation}"]
        if method.is_classmethod:
            call = wrapped(f"lambda: Ledger.{method.name}(", passed, ")", 12)
            lines.append(f"        ledger = await asyncio.to_thread(\n{call}\n        )\n        return cls(ledger)")
        elif any(name == "cancel" for name, _ in method.parameters()):
            call = wrapped(
                f"lambda told, cancel: self.ledger.{method.name}(",
                [*passed, "progress=told", "cancel=cancel"],
                "),",
                12,
            )
            lines.append(f"        return await self._run_to_end(\n{call}\n            progress,\n        )")
        else:
            called = f"lambda: self.ledger.{method.name}("
            lines.append(outer("return await self._run(", called, passed, []))
        return "\n".join(lines) + "\n"


class SyncOfAsync(Maker):
    """A method that waits for each coroutine of a client, on the client's own loop."""

    def make(self, method: Method) -> str:
        is_job = any(name == "progress" for name, _ in method.parameters())
        parameters = method.parameters()
        if is_job:
            place = len(parameters) - (parameters[-1][0].startswith("**"))
            parameters.insert(place, CANCEL)
        texts = [
            text.replace(f"Async{STREAM} | {STREAM}", STREAM) for _, text in parameters
        ]
        item = _iterated(method.returns)
        returns = method.returns if item is None else f"Iterator[{item}]"
        opening = wrapped(f"def {method.name}(", ["self", *texts], f") -> {returns}:", 4)
        lines = [opening, f"        {method.documentation}"]
        called = f"self._client.{method.name}("
        call = f"{called}{', '.join(method.passed())})"
        is_coroutine = isinstance(method.node, ast.AsyncFunctionDef)
        if item is not None:
            lines.append(outer("return self._iterate(", called, method.passed(), []))
        elif is_job:
            lines.append(outer("return self._job(", called, method.passed(), ["cancel"]))
        elif is_coroutine:
            lines.append(outer("return self._run(", called, method.passed(), []))
        else:
            lines.append(f"        return {call}")
        return "\n".join(lines) + "\n"


class AsyncProtocol(Maker):
    """The coroutine of each method of the protocol."""

    def make(self, method: Method) -> str:
        texts = [
            text.replace(STREAM, f"Async{STREAM} | {STREAM}") if method.name == "submit_stream" else text
            for name, text in method.parameters()
            if name != "cancel"
        ]
        item = _iterated(method.returns)
        returns = method.returns if item is None else f"AsyncGenerator[{item}, None]"
        plain = method.name in AT_HAND or item is not None
        name = {"__enter__": "__aenter__", "__exit__": "__aexit__"}.get(method.name, method.name)
        opening = wrapped(f"{'' if plain else 'async '}def {name}(", ["self", *texts], f") -> {returns}:", 4)
        lines = ["    @property"] if method.is_property else []
        if method.documentation == "...":
            lines.append(opening + " ...")
        else:
            lines += [opening, f"        {method.documentation}"]
        return "\n".join(lines) + "\n"


MADE = "made by tests/structure/surface.py: change the source and run that, not this file."
TWINS = (
    Twin(
        "fastledger/chain/aio/methods.py",
        f'"""The coroutines of :class:`fastledger.AsyncLedger` over the methods of a ledger;\n{MADE}\n"""',
        (
            ("fastledger/chain/ledger.py", "Ledger"),
            ("fastledger/chain/submitting.py", "Submitting"),
            ("fastledger/chain/reading/records.py", "RecordCalls"),
            ("fastledger/chain/reading/entities.py", "EntityReader"),
            ("fastledger/chain/reading/following.py", "Following"),
            ("fastledger/chain/keeping/facade.py", "Keeping"),
        ),
        AsyncOfSync,
        frozenset({*LEDGER, *BY_HAND, *AT_HAND}),
        (
            Substitution(
                "Setting the event ``cancel`` ends it with\n        ``OperationCancelledError``.",
                "Cancelling the task that waits\n        ends it.",
            ),
        ),
    ),
    Twin(
        "fastledger/client/sync_methods.py",
        f'"""The methods of :class:`fastledger.Client`, each waiting for one of ``AsyncClient``;\n{MADE}\n"""',
        (
            ("fastledger/client/aio.py", "AsyncClient"),
            ("fastledger/client/reading.py", "NodeReader"),
            ("fastledger/client/export.py", "NodeExporter"),
            ("fastledger/client/federation.py", "FederationCalls"),
            ("fastledger/client/operating.py", "NodeOperator"),
        ),
        SyncOfAsync,
        frozenset({"connect", "fetch_genesis", "close", "genesis", "chain_id", "url"}),
        (
            Substitution(
                "Cancelling the task that waits calls the job off.",
                "Setting the event ``cancel`` calls the job off.",
            ),
            Substitution(
                "Cancelling\n        the task that waits calls the job off",
                "Setting the\n        event ``cancel`` calls the job off",
            ),
            Substitution(
                "Cancelling the task that waits ends it.", "Setting the event ``cancel`` ends it."
            ),
        ),
    ),
    Twin(
        "fastledger/client/aio_api.py",
        f'"""What callers need of a ledger on an event loop;\n{MADE}\n"""',
        (("fastledger/client/api.py", "LedgerApi"),),
        AsyncProtocol,
        frozenset(),
        (
            Substitution(
                "Both :class:`fastledger.Ledger` and :class:`fastledger.Client` are one (SPEC-CLI-1).",
                "Both :class:`fastledger.AsyncLedger` and :class:`fastledger.AsyncClient` are one (SPEC-CLI-1).",
            ),
        ),
    ),
)


def class_of(path: str, name: str) -> tuple[ast.ClassDef, str]:
    text = (ROOT / path).read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, text
    raise AssertionError(f"{path} has no class {name}")


def methods_of(path: str, name: str) -> Iterator[Method]:
    """The methods that a class declares itself and a caller may use, context managers included."""
    found, text = class_of(path, name)
    for node in found.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            is_abstract = any(getattr(each, "id", "") == "abstractmethod" for each in node.decorator_list)
            if not is_abstract:
                yield Method(node, text)


def chosen(twin: Twin) -> Iterator[Method]:
    """The methods that a twin has, each once."""
    seen: set[str] = set()
    for path, name in twin.sources:
        for method in methods_of(path, name):
            is_protocol = twin.make is AsyncProtocol
            hidden = method.name.startswith("_") and not (is_protocol and method.name.startswith("__"))
            if hidden or method.name in twin.left_out or method.name in seen:
                continue
            if method.is_property and not is_protocol:
                continue
            seen.add(method.name)
            yield method


def imports_of(twin: Twin, body: str) -> str:
    """The imports of the names that the generated text uses, from where the sources have them."""
    homes: dict[str, str] = {}
    modules: set[str] = set()
    for path, _ in twin.sources:
        tree = ast.parse((ROOT / path).read_text())
        module = path.removesuffix(".py").replace("/", ".")
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                homes.update({alias.name: str(node.module) for alias in node.names})
            elif isinstance(node, ast.Import):
                modules.update(alias.name for alias in node.names)
            elif isinstance(node, ast.Assign):
                homes.update({each.id: module for each in node.targets if isinstance(each, ast.Name)})
            elif isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, module)
    homes |= GIVEN
    homes.pop("T", None)  # every module declares its own
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    by_module: dict[str, set[str]] = {}
    for name in used & homes.keys():
        by_module.setdefault(homes[name], set()).add(name)
    used |= {name for name in ("AsyncIterable",) if name in body}
    plain = sorted({name for name in used if name in {*modules, "asyncio", "threading"}})
    lines = [f"import {name}" for name in plain]
    standard = sorted(module for module in by_module if not module.startswith("fastledger"))
    own = sorted(module for module in by_module if module.startswith("fastledger"))
    lines += [_import_line(module, by_module[module]) for module in standard]
    lines.append("")
    lines += [_import_line(module, by_module[module]) for module in own]
    return "\n".join(lines)


# Names that the makers bring along.
GIVEN: Mapping[str, str] = {
    "AsyncGenerator": "collections.abc",
    "AsyncIterable": "collections.abc",
    "Callable": "collections.abc",
    "Coroutine": "collections.abc",
    "Iterable": "collections.abc",
    "Iterator": "collections.abc",
    "Any": "typing",
    "Protocol": "typing",
    "Self": "typing",
    "TypeVar": "typing",
    "abstractmethod": "abc",
}


def _import_line(module: str, names: set[str]) -> str:
    ordered = sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) <= LINE_CHARS_MAX:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in ordered) + ")"


CLASSES: Mapping[str, str] = {
    "fastledger/chain/aio/methods.py": '''
T = TypeVar("T")


class AsyncLedgerMethods:
    """One coroutine for each method of a :class:`Ledger`, which does its work on another thread than the loop's."""

    ledger: Ledger

    def __init__(self, ledger: Ledger) -> None:
        """Wraps an open ledger, which stays reachable as ``ledger``."""
        self.ledger = ledger

    @abstractmethod
    async def _run(self, work: Callable[[], T]) -> T:
        """Runs ``work`` on another thread."""

    @abstractmethod
    async def _run_to_end(
        self, work: Callable[[Progress | None, threading.Event], T], progress: Progress | None
    ) -> T:
        """Runs ``work(told, cancel)`` on another thread; a cancelled wait sets ``cancel`` and has it end."""

''',
    "fastledger/client/sync_methods.py": '''
T = TypeVar("T")


class ClientMethods:
    """One method for each coroutine of an :class:`AsyncClient`; it waits on the caller's thread."""

    _client: AsyncClient

    @abstractmethod
    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for a coroutine on the client's loop."""

    @abstractmethod
    def _job(self, work: Coroutine[Any, Any, T], cancel: threading.Event | None) -> T:
        """Waits for long work, which an interrupt or the event ``cancel`` calls off."""

    @abstractmethod
    def _iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """Yields the items of an asynchronous generator."""

''',
    "fastledger/client/aio_api.py": '''

class AsyncLedgerApi(Protocol):
    """{class_documentation}"""

''',
}


@dataclass
class Made:
    """The text of a generated module, and the substitutions that had nothing to do."""

    text: str
    unused: list[Substitution] = field(default_factory=list)


def make(twin: Twin) -> Made:
    maker = twin.make()
    klass = CLASSES[twin.target]
    if "{class_documentation}" in klass:
        documentation = ast.get_docstring(class_of(*twin.sources[0])[0], clean=False)
        klass = klass.replace("{class_documentation}", str(documentation))
    body = klass + "\n".join(maker.make(method) for method in chosen(twin))
    unused = []
    for each in twin.substitutions:
        if each.old not in body:
            unused.append(each)
        body = body.replace(each.old, each.new)
    return Made(f"{twin.head}\n\n{imports_of(twin, body)}\n{body}", unused)


if __name__ == "__main__":
    for one in TWINS:
        (ROOT / one.target).parent.mkdir(exist_ok=True)
        (ROOT / one.target).write_text(make(one).text)
        sys.stdout.write(f"wrote {one.target}\n")
