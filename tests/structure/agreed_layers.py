"""What the files may use of whose results all nodes must agree, a list a layer, and the check of all of them.

The rules proper (``subjects``) have the shortest list. ``state`` derives kinds and tables from declarations, before
any transaction is judged, and may reflect on types for that. ``model`` and ``consensus`` are what clients and miners
run as well.
"""

import ast
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rule_purity import ALL, Allowance, find_impurities
from set_order import gather_facts
from source_graph import PACKAGE, ROOT

_SHARED: Mapping[str, frozenset[str]] = {
    "bisect": ALL,
    "collections.abc": ALL,
    "dataclasses": ALL,
    "enum": ALL,
    "fastledger.errors": ALL,
    "fastledger.limits": ALL,
    "fastledger.model": ALL,
    # Not what draws a fresh id.
    "fastledger.model.ids": frozenset({"identity_id", "rotation_digest"}),
    "hashlib": ALL,
    "msgspec": frozenset({"Meta", "field"}),
    "typing": ALL,
}
_BUILDING: Mapping[str, frozenset[str]] = {
    "functools": ALL,
    "inspect": ALL,
    "msgspec": ALL,
    "operator": frozenset({"attrgetter"}),
    "types": ALL,
}
ALLOWANCES: Mapping[str, Allowance] = {
    "subjects": Allowance(
        {
            **_SHARED,
            "fastledger.crypto": frozenset({"verify_batch"}),
            "fastledger.crypto.hpke": frozenset({"public_key_suite"}),
            "fastledger.state": ALL,
            "fastledger.subjects": ALL,
        }
    ),
    "state": Allowance(
        {
            **_SHARED,
            **_BUILDING,
            "fastledger._native.view": ALL,
            "fastledger.reprs": ALL,
            "fastledger.crypto": frozenset({"verify_batch"}),
            "fastledger.state": ALL,
        },
        reflection=True,
        texts=True,
    ),
    "model": Allowance(
        {
            **_SHARED,
            **_BUILDING,
            "array": ALL,
            "base64": ALL,
            "cbor2": ALL,
            "fastledger": frozenset({"errors", "limits"}),
            # Conditions of a query; nothing that a node judges.
            "fastledger.times": ALL,
            "fastledger.reprs": ALL,
            "fastledger._native": ALL,
            "fastledger.crypto": ALL,
            "fastledger.model.ids": ALL,
            "fastledger.version": ALL,
            "itertools": ALL,
            "struct": ALL,
            "typing_extensions": ALL,
        },
        reflection=True,
        texts=True,
    ),
    "consensus": Allowance(
        {
            **_SHARED,
            "fastledger.consensus": ALL,
            "fastledger.crypto": ALL,
            "fastledger.version": ALL,
            "functools": ALL,
            "heapq": ALL,
            "itertools": ALL,
        },
        texts=True,
    ),
}
# File -> what it may have besides: drawing ids and salts is a client's act, before anything is signed.
EXCEPTIONS: Mapping[str, frozenset[str]] = {
    "model/genesis.py": frozenset({"module os is not on the list", ".urandom draws by chance"}),
    "model/ids.py": frozenset({"module os is not on the list", ".urandom draws by chance"}),
}


def impurities(root: Path = ROOT) -> dict[str, list[str]]:
    """Each file of these layers, by its path in the package -> what it has that it may not have."""
    package = root / PACKAGE
    paths = {layer: sorted((package / layer).rglob("*.py")) for layer in ALLOWANCES}
    trees = {str(path): ast.parse(path.read_text()) for found in paths.values() for path in found}
    facts = gather_facts(trees)
    result: dict[str, list[str]] = {}
    for layer, allowance in ALLOWANCES.items():
        own = replace(allowance, facts=facts)
        for path in paths[layer]:
            name = str(path.relative_to(package))
            excused = EXCEPTIONS.get(name, frozenset())
            found = find_impurities(trees[str(path)], own)
            result[name] = [f"{line}: {what}" for line, what in found if what not in excused]
    return result
