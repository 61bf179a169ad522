"""Between the configuration's structs and text: TOML in with the line of every problem, a commented template out."""

import difflib
import json
import os
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect, structs

from fastledger.daemon.config.lines import Key, locate_keys
from fastledger.daemon.config.settings import NodeConfig, relation_problems
from fastledger.errors import ConfigError

CONFIG_BYTES_MAX = 1 << 20
ENVIRONMENT_PREFIX = "FASTLEDGER_NODE__"
# TOML's one kind of array, as structs have it.
_ARRAYS: Mapping[type[inspect.Type], type[tuple[Any, ...]] | type[frozenset[Any]]] = {
    inspect.VarTupleType: tuple,
    inspect.FrozenSetType: frozenset,
}
_Array = inspect.VarTupleType | inspect.FrozenSetType


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: dotted name, what values it takes, its default (None: it has to be given) and its text."""

    name: str
    values: str
    default: Any
    text: str
    is_path: bool
    type: inspect.Type


def _fields(section: type[msgspec.Struct]) -> Iterator[tuple[structs.FieldInfo, inspect.Type]]:
    """The fields of a section that can stand in a file: those with a description, its own before inherited ones."""
    own = section.__annotations__
    for item in sorted(structs.fields(section), key=lambda item: item.name not in own):
        annotated = inspect.type_info(item.type)
        if _unwrap(annotated)[1]:
            yield item, annotated


def settings(section: type[msgspec.Struct] = NodeConfig, prefix: str = "") -> Iterator[Setting]:
    """Every setting, in the order of the template; those of a client under ``rpc.access.client``."""
    tables = []
    for item, annotated in _fields(section):
        kind, text, is_path = _unwrap(annotated)
        name = f"{prefix}{item.encode_name}"
        table = _table_of(kind)
        if table is not None:
            tables.append((table, name))
            continue
        default = None if item.required else _default(item)
        yield Setting(name, _expected(kind), default, text, is_path, kind)
    for table, name in tables:
        yield from settings(table, f"{name}.")


def _default(item: structs.FieldInfo) -> Any:
    return item.default_factory() if item.default is msgspec.NODEFAULT else item.default


def _unwrap(kind: inspect.Type) -> tuple[inspect.Type, str, bool]:
    """The bare type, its description, and whether it is a path."""
    text, is_path = "", False
    while isinstance(kind, inspect.Metadata):
        text = text or (kind.extra_json_schema or {}).get("description", "")
        is_path = is_path or bool((kind.extra or {}).get("path"))
        kind = kind.type
    return kind, text, is_path


def _table_of(kind: inspect.Type) -> type[msgspec.Struct] | None:
    """The struct of a table, or of an array of tables."""
    if isinstance(kind, _Array):
        kind = _unwrap(kind.item_type)[0]
    return kind.cls if isinstance(kind, inspect.StructType) else None


def _expected(kind: inspect.Type) -> str:
    """What values a type takes, for people."""
    kind = _unwrap(kind)[0]
    if isinstance(kind, inspect.IntType):
        return f"an integer {kind.ge}..{kind.le}"
    if isinstance(kind, inspect.FloatType):
        return f"a number {kind.ge}..{kind.le}"
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(json.dumps(value) for value in kind.values)
    if isinstance(kind, _Array):
        bounds = f", {kind.min_length} or more" if kind.min_length else ""
        return f"a list of {_expected(kind.item_type)}{bounds}"
    if isinstance(kind, inspect.StrType):
        if kind.pattern:
            return f"a string matching {kind.pattern}"
        if kind.max_length:
            return f"a string of {kind.min_length or 0}..{kind.max_length} characters"
        return "a string that is not empty" if kind.min_length else "a string"
    return "a table"


# In.


@dataclass
class _Reader:
    """Collects the problems of one document."""

    label: str
    lines: Mapping[Key, int]
    base: Path
    variables: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def add(self, key: Key, problem: str) -> None:
        """Notes a problem at a key's line, or at the nearest table around it, or at its variable."""
        name = ".".join(map(str, key))
        if name in self.variables:
            self.problems.append((1 << 30, f"{self.variables[name]}: {problem}"))
            return
        line = next((self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines), 1)
        self.problems.append((line, f"{self.label}:{line}: {name}: {problem}"))

    def table(self, cls: type[msgspec.Struct], value: Any, key: Key) -> Any:
        """The struct of a table, or None where something in it is wrong."""
        if not isinstance(value, dict):
            self.add(key, "expected a table")
            return None
        fields = {item.encode_name: (item, annotated) for item, annotated in _fields(cls)}
        for name in value.keys() - fields.keys():
            self.add((*key, name), "no such setting" + _did_you_mean(name, fields))
        given: dict[str, Any] = {}
        for name, (item, annotated) in fields.items():
            place = (*key, name)
            table = _table_of(_unwrap(annotated)[0])
            if name in value:
                given[item.name] = self.value(annotated, value[name], place)
            elif table is not None and item.required:
                given[item.name] = self.table(table, {}, place)
            elif item.required:
                self.add(place, f"is missing: expected {_expected(annotated)}")
        if self.problems:
            return None
        return cls(**given)

    def value(self, annotated: inspect.Type, value: Any, key: Key) -> Any:
        """One value, checked."""
        kind, _, is_path = _unwrap(annotated)
        table = _table_of(kind)
        if table is not None and isinstance(kind, _Array):
            if not isinstance(value, list):
                self.add(key, "expected an array of tables")
                return None
            if kind.max_length is not None and len(value) > kind.max_length:
                self.add(key, f"expected at most {kind.max_length} tables")
                return None
            return tuple(self.table(table, item, (*key, index)) for index, item in enumerate(value))
        if table is not None:
            return self.table(table, value, key)
        if not _fits(kind, value):
            self.add(key, f"expected {_expected(kind)}")
            return None
        if is_path and value:
            return str(self.base / value)
        if isinstance(kind, inspect.FloatType):
            return float(value)
        return _ARRAYS[type(kind)](value) if isinstance(kind, _Array) else value


def _fits(kind: inspect.Type, value: Any) -> bool:
    """Whether a TOML value is of the type and within its bounds."""
    if isinstance(kind, inspect.Metadata):
        return _fits(kind.type, value)
    if isinstance(kind, inspect.IntType):
        return type(value) is int and (kind.ge or 0) <= value <= (kind.le or 0)
    if isinstance(kind, inspect.FloatType):
        return type(value) in (int, float) and (kind.ge or 0) <= value <= (kind.le or 0)
    if isinstance(kind, inspect.BoolType):
        return type(value) is bool
    if isinstance(kind, inspect.LiteralType):
        return value in kind.values and isinstance(value, str)
    if isinstance(kind, _Array):
        return (
            isinstance(value, list)
            and (kind.min_length or 0) <= len(value) <= (kind.max_length or len(value))
            and all(_fits(kind.item_type, item) for item in value)
        )
    if isinstance(kind, inspect.StrType):
        return (
            isinstance(value, str)
            and "\0" not in value
            and (kind.min_length or 0) <= len(value) <= (kind.max_length or len(value))
            # Python's `$` also matches before a last newline; the whole value has to match.
            and (kind.pattern is None or re.fullmatch(kind.pattern.strip("^$"), value) is not None)
        )
    return False


def _did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def load_config(path: str | Path, environ: Mapping[str, str] = os.environ) -> NodeConfig:
    """Reads and checks the file, with ``FASTLEDGER_NODE__SECTION__SETTING`` from the environment over it.

    Paths come out absolute. Raises ``ConfigError`` with every problem and its line (SPEC-NODE-101..105).
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError([f"{path.name}: {error.strerror}"]) from None
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError([f"{path.name}: is longer than {CONFIG_BYTES_MAX} bytes"])
    return parse_config(data, label=path.name, base=path.absolute().parent, environ=environ)


def parse_config(data: bytes, *, label: str, base: Path, environ: Mapping[str, str]) -> NodeConfig:
    """The configuration in a file's bytes; ``label`` names it in problems, ``base`` is where its paths start."""
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{label}:{line}: is not UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_problem(label, text, str(error))]) from None
    except RecursionError:
        raise ConfigError([f"{label}: is nested too deeply"]) from None
    reader = _Reader(label, locate_keys(text), base)
    _override(document, reader, environ)
    config = reader.table(NodeConfig, document, ())
    if config is not None:
        for name, problem in relation_problems(config):
            reader.add(tuple(int(part) if part.isdigit() else part for part in name.split(".")), problem)
    if reader.problems or not isinstance(config, NodeConfig):
        raise ConfigError([problem for _, problem in sorted(reader.problems)])
    return config


def _syntax_problem(label: str, text: str, message: str) -> str:
    """The parser's complaint in our form. Only its place is kept: its words may quote the document."""
    found = re.search(r"\(at line (\d+), column (\d+)\)", message)
    if found is None:
        return f"{label}:{text.count(chr(10)) + 1}: is not TOML: ends too early"
    return f"{label}:{found[1]}: is not TOML: error at column {found[2]}"


def _override(document: dict[str, Any], reader: _Reader, environ: Mapping[str, str]) -> None:
    """Puts the environment's settings over the document's (SPEC-NODE-103)."""
    known = {item.name: item for item in settings() if not item.name.startswith("rpc.access.client.")}
    variables = {ENVIRONMENT_PREFIX + name.upper().replace(".", "__"): name for name in known}
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variables.get(variable)
        if name is None:
            hint = _did_you_mean(variable, variables)
            reader.problems.append((1 << 30, f"{variable}: no such setting{hint}"))
            continue
        reader.variables[name] = variable
        *tables, last = name.split(".")
        target: Any = document
        for table in tables:
            target = target.setdefault(table, {}) if isinstance(target, dict) else {}
        if isinstance(target, dict):
            target[last] = _from_text(known[name].type, environ[variable])


def _from_text(kind: inspect.Type, text: str) -> Any:
    """A variable's text as a TOML value; what does not convert stays text, and is then found not to fit."""
    if isinstance(kind, inspect.IntType) and re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    if isinstance(kind, inspect.FloatType) and re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,9})?", text):
        return float(text)
    if isinstance(kind, inspect.BoolType) and text in ("true", "false"):
        return text == "true"
    if isinstance(kind, _Array):
        return [part.strip() for part in text.split(",")] if text.strip() else []
    return text


# Out.

_HEAD = """\
# FastLedger node. Sizes are bytes, times milliseconds; relative paths start at this file's directory.
# A line that is commented out shows the default. `fastledger config check FILE` checks the whole file.
# The environment goes over it: FASTLEDGER_NODE__RPC__PORT=8470 is rpc.port.
"""


def render_config(config: NodeConfig) -> str:
    """A commented TOML file of every setting; reading it gives ``config`` again (SPEC-NODE-106)."""
    lines = [_HEAD]
    _render_table(config, "", lines)
    return "\n".join(lines).rstrip("\n") + "\n"


def _render_table(section: msgspec.Struct, name: str, lines: list[str], *, array: bool = False) -> None:
    tables = []
    if name:
        lines += ["", f"# {_first_sentence(section)}", f"[[{name}]]" if array else f"[{name}]"]
    for item, annotated in _fields(type(section)):
        kind, text, _ = _unwrap(annotated)
        value = getattr(section, item.name)
        if _table_of(kind) is not None:
            tables.append((f"{name}.{item.encode_name}" if name else item.encode_name, kind, value))
            continue
        lines += [f"# {line}" for line in textwrap.wrap(f"{text} Takes {_expected(kind)}.", 108)]
        unchanged = not item.required and value == _default(item)
        lines.append(f"{'# ' if unchanged else ''}{item.encode_name} = {_toml(value)}")
    for table_name, kind, value in tables:
        if not isinstance(kind, _Array):
            _render_table(value, table_name, lines)
        for entry in value if isinstance(kind, _Array) else ():
            _render_table(entry, table_name, lines, array=True)
        if isinstance(kind, _Array) and not value:
            lines += _example(_table_of(kind), table_name)


def _example(table: type[msgspec.Struct] | None, name: str) -> list[str]:
    """An array of tables that has none, as a comment."""
    if table is None:
        return []
    lines = ["", f"# {_first_sentence(table)} Any number of these:", f"# [[{name}]]"]
    for item, annotated in _fields(table):
        kind, text, _ = _unwrap(annotated)
        lines.append(f"# {item.encode_name} = ...   # {text} Takes {_expected(kind)}.")
    return lines


def _first_sentence(section: msgspec.Struct | type[msgspec.Struct]) -> str:
    return (section.__doc__ or "").split("\n")[0]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(int(value)) if value == int(value) else repr(value)
    if isinstance(value, tuple | frozenset):
        return "[" + ", ".join(map(_toml, sorted(value) if isinstance(value, frozenset) else value)) + "]"
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def settings_table() -> str:
    """Every setting as a Markdown table, for docs/operating.md."""
    rows = ["| setting | default | takes | what |", "|---|---|---|---|"]
    for item in settings():
        default = "" if item.default is None else f"`{_toml(item.default)}`"
        takes = item.values.replace("|", "\\|")
        rows.append(f"| `{item.name}` | {default} | {takes} | {item.text} |")
    return "\n".join(rows)
