"""Hypothesis strategies of the model's values, drawn from the types themselves."""

from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st
from msgspec import Meta

from fastledger.crypto.hpke import KemSuite
from fastledger.model.body import Body
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.identity import IDENTITIES

BODIES = {name: kind.body for name, kind in REGISTRY.kinds.items()}

UINT64_MAX = 2**64 - 1
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)

# Any 32 bytes are a point of X25519; the hybrid suite has tests of its own.
X25519_HEAD = int(KemSuite.X25519).to_bytes(2, "big")
KEM_PUBLIC = st.binary(min_size=32, max_size=32).map(lambda raw: X25519_HEAD + raw)

# Whatever the strict codec lets through.
CBOR_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), UINT64_MAX) | st.binary(max_size=40) | TEXT,
    lambda items: st.lists(items, max_size=5) | st.dictionaries(TEXT, items, max_size=5),
    max_leaves=12,
)


NOBODY: Mapping[bytes, list[bytes]] = {}


def of_type(hint: Any, meta: Meta | None = None, known: Mapping[bytes, list[bytes]] = NOBODY) -> st.SearchStrategy[Any]:
    """Values that fit a field's annotation, its bounds included; ids are often ``known`` ones of their table."""
    if get_origin(hint) is Annotated:
        inner, found = get_args(hint)[:2]
        return of_type(inner, found, known)
    if get_origin(hint) in (Union, UnionType):
        return st.one_of(*(of_type(part, None, known) for part in get_args(hint)))
    if hint is NoneType:
        return st.none()
    low = (meta.min_length or 0) if meta else 0
    high = meta.max_length if meta else None
    extra = (meta.extra if meta else None) or {}
    if hint is bytes:
        table = extra.get("table") or (IDENTITIES if extra.get("identity") else None)
        stand = known.get(table.prefix, []) if table is not None else []
        fresh = st.binary(min_size=low, max_size=high)
        return st.sampled_from(stand) | fresh if stand else fresh
    if hint is str:
        pattern = (meta.pattern if meta else None) or ""
        return st.from_regex(pattern, fullmatch=True).filter(lambda text: low <= len(text) <= (high or 64))
    if hint is bool:
        return st.booleans()
    if hint is int:
        assert meta is not None
        if "mask" in extra:
            return st.sets(st.sampled_from(sorted(extra["mask"].values())), min_size=int(meta.ge or 0)).map(sum)
        near = st.integers(int(meta.ge or 0), 3) if meta.ge is not None and meta.ge <= 3 else st.nothing()
        return near | st.integers(int(meta.ge or 0), int(meta.le or UINT64_MAX))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return struct_of(hint, known)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    if get_origin(hint) is list:
        # A few are as good as many, and much quicker.
        return st.lists(of_type(get_args(hint)[0], None, known), min_size=low, max_size=min(high or 3, 3))
    if get_origin(hint) is tuple and get_args(hint)[-1] is ...:
        return st.lists(of_type(get_args(hint)[0], None, known), max_size=3).map(tuple)
    if get_origin(hint) is tuple:
        return st.tuples(*(of_type(part, None, known) for part in get_args(hint)))
    raise TypeError(f"no strategy for {hint}")


def body_of(kind: str) -> st.SearchStrategy[Body]:
    """Bodies of one kind."""
    return struct_of(REGISTRY.kinds[kind].body)


def struct_of(struct: type[msgspec.Struct], known: Mapping[bytes, list[bytes]] = NOBODY) -> st.SearchStrategy[Any]:
    """Bodies or entities of one type."""
    hints = get_type_hints(struct, include_extras=True)
    fields = {
        name: KEM_PUBLIC if name == "kem" else of_type(hint, None, known)
        for name, hint in hints.items()
        if name in struct.__struct_fields__
    }
    return st.builds(struct, **fields)


BODY = st.sampled_from(sorted(BODIES)).flatmap(body_of)
