"""Writes what the documentation derives from declarations: ``docs/subjects.md``, and the methods in ``docs/rpc.md``.

``make docs`` runs it. A test holds that the committed pages are what it writes.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastledger import limits
from fastledger.errors import Code
from fastledger.model.shape import FieldShape, fields_of, shape_of
from fastledger.rpc.chain import CHAIN_METHODS
from fastledger.rpc.entities import entity_methods
from fastledger.rpc.federation import federation_methods
from fastledger.rpc.jobs import Jobs
from fastledger.rpc.methods import Method
from fastledger.rpc.operator import Hooks, operator_methods
from fastledger.rpc.transactions import TRANSACTION_METHODS
from fastledger.state.entity import EntityTable
from fastledger.state.kind import Kind
from fastledger.state.registry import Declaration, Registry
from fastledger.state.views import form_of
from fastledger.state.wording import text_of
from fastledger.subjects.catalogue import REGISTRY

INTRODUCTION = """# Subjects

What a chain can be told, by subject: its transactions, what they leave in the state, and why they are
refused. This page is generated from `fastledger/subjects/` by `make docs`; change it there.

A **kind** is a kind of transaction. It has a body, whose fields are listed, and a rule, which says who may
sign it and what follows. On the command line it is `fastledger tx SUBJECT ACTION LEDGER`, with an option for
each field; in another language, generate the types of bodies from the schemas with `x-kind` in a node's
`/openrpc.json`. A **table** holds entities under keys: `fastledger show TABLE LEDGER KEY`,
`ledger.entity(TABLE, key)`, `<table>.get` over JSON-RPC. Where it says by what a list is found there is also
`fastledger show TABLE LEDGER --by FIELD=ID`, `ledger.entities(TABLE, by={field: id})` and `<table>.list`.
Ids, digests and keys are in hexadecimal, times integer UTC milliseconds, sets of bits lists of names."""
METHODS_BEGIN, METHODS_END = "<!-- methods -->\n", "\n<!-- end of methods -->"


def subjects_page(registry: Registry = REGISTRY) -> str:
    """Returns ``docs/subjects.md`` as the declarations have it."""
    parts = [INTRODUCTION, _overview(registry)]
    for subject in registry.subjects:
        parts += _subject(registry, subject)
    refusals = {code for subject in registry.subjects for code in subject.refusals}
    parts += ["## Codes of the engine", _codes(code for code in Code.all() if code not in refusals)]
    return "\n\n".join(parts) + "\n"


def with_methods(page: str) -> str:
    """Returns ``docs/rpc.md`` with its table of methods as the server has it."""
    before, _, rest = page.partition(METHODS_BEGIN)
    return f"{before}{METHODS_BEGIN}{_methods()}{METHODS_END}{rest.partition(METHODS_END)[2]}"


def _table(*header: str, rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _overview(registry: Registry) -> str:
    rows = (
        (
            subject.number,
            f"[{subject.name}](#{subject.name})",
            subject.summary,
            ", ".join(f"`{kind.action}`" for kind in registry.kinds_of(subject.name)) or "none",
            ", ".join(f"`{table.name}`" for table in subject.tables.values()) or "none",
        )
        for subject in registry.subjects
    )
    return _table("number", "subject", "about", "kinds", "tables", rows=rows)


def _subject(registry: Registry, subject: Declaration) -> Iterator[str]:
    """The sections of one subject: what it is, its kinds, tables, refusals and limits."""
    yield f"## {subject.name}"
    module = _module(subject)
    yield _prose(module.__doc__ if module is not None else subject.summary)
    for kind in registry.kinds_of(subject.name):
        yield from _kind(kind)
    for table in subject.tables.values():
        yield from _entities(table)
    if subject.refusals:
        yield f"### Refusals of {subject.name}"
        yield _codes(subject.refusals)
    bounds = _limits(module)
    if bounds:
        yield f"### Limits of {subject.name}"
        yield _table("limit", "value", rows=((f"`{name}`", f"{value:,}") for name, value in bounds))


def _module(subject: Declaration) -> Any:
    """The module that declares the subject; None for one that declares neither kind nor table."""
    declared = [*(kind.rule for kind in subject.kinds), *(table.entity for table in subject.tables.values())]
    return inspect.getmodule(declared[0]) if declared else None


def _kind(kind: Kind) -> Iterator[str]:
    yield f"### `{kind.name}`"
    yield _prose(kind.body.__doc__)
    marks = [f"since rule set {kind.since}"] if kind.since > 1 else []
    marks += ["an alert: whoever watches the chain is told"] if kind.is_alert else []
    yield f"*Rule:* {_prose(kind.rule.__doc__)}" + (f" ({'; '.join(marks)})" if marks else "")
    rows = ((f"`{field.name}`", text_of(field.shape), _left_out(field)) for field in fields_of(kind.body))
    yield _table("field", "value", "left out", rows=rows)


def _left_out(field: FieldShape) -> str:
    """What stands for a field of a body that is left out."""
    if field.required:
        return "no"
    if field.default in (None, [], b""):
        return "none"
    shown = form_of(field.shape).show(field.default)
    return f"`{shown.value if hasattr(shown, 'value') else shown}`"


def _entities(table: EntityTable[Any]) -> Iterator[str]:
    yield f"### Table `{table.name}`"
    yield _prose(table.entity.__doc__)
    found = ", ".join(f"`{name}`" for name in table.listed_by) if table.is_indexed else ""
    if table.is_indexed:
        yield f"Listed, also by {found}." if found else "Listed."
    keys = ((f"`{part.name}` (key)", text_of(shape_of(part.type))) for part in table.parts)
    fields = ((f"`{field.name}`", text_of(field.shape)) for field in fields_of(table.entity))
    yield _table("field", "value", rows=(*keys, *fields))


def _codes(codes: Iterable[Code]) -> str:
    return _table("number", "name", "why", rows=((int(code), f"`{code.slug}`", code.text) for code in codes))


def _limits(module: Any) -> list[tuple[str, int]]:
    """The bounds of :mod:`fastledger.limits` that a subject's module uses."""
    names = [name for name in vars(module) if name.isupper()] if module is not None else []
    return [(name, getattr(limits, name)) for name in sorted(names) if hasattr(limits, name)]


def _prose(docstring: str | None) -> str:
    """A docstring as Markdown: its paragraphs on one line each, names of code in single backticks."""
    text = re.sub(r"``(.+?)``", r"`\1`", inspect.cleandoc(docstring or ""))
    text = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _methods() -> str:
    rows: list[Method] = [
        *CHAIN_METHODS,
        *entity_methods(),
        *TRANSACTION_METHODS,
        *operator_methods(Jobs(), Hooks(figures=dict, reload=list, stop=lambda: None)),
        *federation_methods(None),
    ]
    return _table(
        "method",
        "role",
        "parameters",
        "result",
        "what",
        rows=(
            (
                f"`{row.name}`",
                row.role,
                ", ".join(f"`{name}`" for name in row.params.__struct_fields__) or "none",
                f"`{row.result.__name__}`",
                row.summary.rstrip("."),
            )
            for row in sorted(rows, key=lambda row: row.name)
        ),
    )


def pages(folder: Path) -> dict[Path, str]:
    """Returns the generated pages of the documentation in ``folder``, by their paths."""
    rpc = folder / "rpc.md"
    return {folder / "subjects.md": subjects_page(), rpc: with_methods(rpc.read_text())}


if __name__ == "__main__":
    for path, text in pages(Path(sys.argv[1])).items():
        path.write_text(text)
