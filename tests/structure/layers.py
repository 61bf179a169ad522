"""The layers of the package, lowest first, and what each may import. docs/decisions.md tells why."""

from collections.abc import Iterator, Mapping

from source_graph import PACKAGE, Graph, Import

# What everything may import, and what imports nothing but itself.
BASE = frozenset({"errors", "extras", "limits", "reprs", "settings", "times", "version"})
# Single modules over nothing but the base, for those layers that may see a clock.
TIMED = frozenset({"clock", "pace", "stage_times"})
# Single modules over some of the layers, for ledgers and clients alike, and what each may import.
LONE: Mapping[str, set[str]] = {
    "streams": {"model"},
}
# Layer -> the layers that it may import besides itself and the base.
LAYERS: Mapping[str, set[str]] = {
    "_native": set(),
    "crypto": {"_native"},
    "model": {"_native", "crypto"},
    "storage": {"_native"},
    "state": {"_native", "crypto", "model"},
    "subjects": {"_native", "crypto", "model", "state"},
    "wallet": {"crypto", "model", "state", "subjects", "clock"},
    "consensus": {"crypto", "model"},
    "chain": {
        *("_native", "crypto", "model", "storage", "state", "subjects", "wallet", "consensus"),
        *LONE,
        *TIMED,
    },
    "peers": {"_native", "crypto", "model", "storage", "consensus", "chain"},
    "gateway": set(),
    "workload": {"gateway"},
    "node": {"_native", "crypto", "model", "storage", "state", "subjects", "consensus", "chain", "peers", *TIMED},
    "rpc": {"crypto", "model", "storage", "state", "subjects", "chain", "peers", "node", *TIMED},
    "daemon": {"crypto", "model", "storage", "chain", "node", "rpc", *TIMED},
    "client": {
        *("_native", "crypto", "model", "state", "subjects", "wallet", "gateway", "rpc"),
        *LONE,
        *TIMED,
    },
    "bench": {"_native", "crypto"},
    "cli": {
        *("crypto", "model", "storage", "state", "subjects", "chain", "node", "rpc", "daemon"),
        *TIMED,
        *("gateway", "wallet", "client", "workload", "bench"),
        *LONE,
    },
}
# Layer -> the only modules that it may import of another: a client shares the node's wire forms, not its server.
ONLY: Mapping[tuple[str, str], set[str]] = {("client", "rpc"): {"fastledger.rpc.protocol"}}
FACADE = "__init__"


def layer_of(module: str) -> str:
    """The layer of a module: its folder, or its own name where it lies beside the folders."""
    parts = module.split(".")
    if len(parts) == 1:
        return FACADE
    return "cli" if parts[1] == "__main__" else parts[1]


def allowed_layers(layer: str) -> set[str]:
    """What a layer may import; the base modules and the timed ones stand on the base alone."""
    if layer in BASE | TIMED:
        return {*BASE, layer}
    return {*(LONE.get(layer) or LAYERS[layer]), *BASE, layer}


def layer_faults(graph: Graph) -> Iterator[str]:
    """Every import that runs against the layers. Nothing inside the package imports from its façade."""
    for item in graph.imports:
        fault = _fault(item)
        if fault:
            yield f"{item.importer}:{item.line} may not import {item.target}: {fault}"


def _fault(item: Import) -> str:
    layer, target = layer_of(item.importer), layer_of(item.target)
    if layer == FACADE:
        return ""
    if layer not in {*LAYERS, *LONE, *BASE, *TIMED}:
        return f"{layer} is not a layer, give it its place in LAYERS"
    if target == FACADE:
        return "the package's own names are for others"
    if target not in allowed_layers(layer):
        return f"{target} is no layer below {layer}"
    only = ONLY.get((layer, target))
    if only is not None and item.target not in only and item.target != f"{PACKAGE}.{target}":
        return f"of {target}, {layer} may import {', '.join(sorted(only))} alone"
    return ""
