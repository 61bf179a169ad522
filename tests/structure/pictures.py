"""Draws ``docs/layers.svg`` and ``docs/walk.svg``: ``python tests/structure/pictures.py`` writes both.

The layers, and which may import which, are those of ``layers.py``; what stands beside each is what the README's map
says. The steps of the walk are listed here, each with the function that does it. Tests hold that the committed
pictures are what this writes, and that every function is where its step says.
"""

import ast
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from documents import layer_map
from layers import LAYERS
from source_graph import PACKAGE, ROOT

PICTURES = ("layers.svg", "walk.svg")
_STYLE = """\
  <style>
    .box { fill: #f6f8fa; stroke: #57606a; }
    .native { fill: #fff4e5; } .disk { fill: #e8f3ec; }
    .arrow { fill: none; stroke: #57606a; stroke-width: 1.4; marker-end: url(#head); }
    .far { stroke: #8c959f; }
    text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #24292f; }
    .name { font-weight: 600; } .path { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; fill: #57606a; }
    .head { font-size: 15px; font-weight: 600; } .note { fill: #57606a; font-style: italic; }
  </style>
  <defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
    <path d="M0 0 L8 4 L0 8 z" fill="#57606a"/></marker></defs>
"""


def _document(width: int, height: int, title: str, shapes: Sequence[str]) -> str:
    body = "\n".join(f"  {shape}" for shape in shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n'
        f"  <title>{html.escape(title)}</title>\n{_STYLE}"
        f'  <rect width="{width}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _box(x: int, y: int, width: int, height: int, kind: str = "") -> str:
    return f'<rect class="box {kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>'


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{html.escape(text, quote=False)}</text>'


def _arrow(path: str, kind: str = "") -> str:
    return f'<path class="arrow {kind}" d="{path}"/>'


# The layers.


def direct_imports(layers: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Of what each layer may import, what it cannot reach through another layer: the arrows of the picture."""
    below: dict[str, set[str]] = {}
    for layer, allowed in layers.items():
        below[layer] = {name for name in allowed if name in layers}
        for name in list(below[layer]):
            below[layer] |= below[name]
    return {
        layer: {
            name
            for name in allowed
            if name in layers and not any(name in below[other] for other in allowed if other in layers)
        }
        for layer, allowed in layers.items()
    }


def draw_layers(layers: Mapping[str, set[str]] = LAYERS) -> str:
    """A box a layer, the lowest at the bottom; arrows show direct imports, the far ones on the right."""
    left, width, height, gap = 20, 700, 34, 14
    order, summaries = list(reversed(layers)), layer_map((ROOT / "README.md").read_text())
    top = {layer: 44 + place * (height + gap) for place, layer in enumerate(order)}
    shapes = [
        _text(left, 26, "Imports run down along the arrows, and along any chain of arrows; none runs up.", "note")
    ]
    for layer in order:
        kind = "native" if layer == "_native" else ""
        shapes += [
            _box(left, top[layer], width, height, kind),
            _text(left + 12, top[layer] + 22, layer, "name"),
            _text(left + 104, top[layer] + 22, summaries[layer]),
        ]
    right = left + width
    far = []
    for layer, targets in direct_imports(layers).items():
        for target in targets:
            distance = order.index(target) - order.index(layer)
            if distance == 1:
                shapes.append(_arrow(f"M{left + 50} {top[layer] + height} V{top[target]}"))
            else:
                far.append((distance, top[layer] + height // 2 + 6, top[target] + height // 2 - 6))
    lanes: list[list[tuple[int, int]]] = []
    for _, begin, end in sorted(far):
        free = (n for n, taken in enumerate(lanes) if all(end < other or begin > until for other, until in taken))
        lane = next(free, len(lanes))
        if lane == len(lanes):
            lanes.append([])
        lanes[lane].append((begin, end))
        shapes.append(_arrow(_detour(right, right + 18 + 15 * lane, begin, end), "far"))
    return _document(right + 30 + 15 * len(lanes), top[order[-1]] + height + 20, "The layers", shapes)


def _detour(x: int, lane_x: int, begin: int, end: int) -> str:
    """A path to the right into a lane, down, and back."""
    near = lane_x - 6
    return (
        f"M{x} {begin} H{near} Q{lane_x} {begin} {lane_x} {begin + 6} "
        f"V{end - 6} Q{lane_x} {end} {near} {end} H{x}"
    )


# The walk.


@dataclass(frozen=True)
class Step:
    """One step: what happens, the function that does it (``path:name``), and what goes on to the next step."""

    does: str
    where: str
    gives: str = ""
    kind: str = ""


TRANSACTION = (
    Step("route, caller, role, rate, size", "rpc/server.py:RpcServer._handle", "a call"),
    Step("parameters; high s normalised", "rpc/transactions.py:submit", "one COSE_Sign1"),
    Step("singles gather into a batch", "node/ingest.py:Batcher.submit", "a batch, on a worker thread"),
    Step("scan and hash all", "chain/admission.py:Batch.submitted", "ids, signers, statuses", "native"),
    Step("chain, window, body, envelope, signatures", "chain/admission.py:admit", "an admitted batch"),
    Step("bounded queue", "chain/pipeline.py:Pipeline.submit", "all that waits, on the executor's thread"),
    Step("one block of it", "chain/execution/executor.py:Executor.build", "bodies, one by one"),
    Step("the rule for its kind", "state/transition.py:apply", "codes, writes, terms"),
    Step("roots, header, seal, append", "chain/execution/executor.py:Executor._append", "a frame", "native"),
    Step("one sync a group, then `durable`", "storage/log.py:SegmentLog.sync", "layers of state", "disk"),
    Step("the overlay goes to LMDB", "storage/index.py:Index.write_checkpoint", "", "disk"),
)
BLOCK = (
    Step("bytes of a mutual TLS link", "node/federation/transport.py:PeerLink.data_received", "bytes"),
    Step("one mailbox to the chain's thread", "node/federation/driver.py:Federation.received", "bytes in order"),
    Step("frames, messages, scores", "peers/network.py:PeerNetwork.received", "a block that was asked for"),
    Step("the fork chain takes it in", "chain/forks/chain.py:ForkChain.add_block", "its header"),
    Step("seal, parent, time, work", "chain/forks/header_intake.py:HeaderIntake.add", "a place in the tree"),
    Step("shape, roots, form, signatures", "chain/forks/blocks.py:check_copy", "a checked copy", "native"),
    Step("kept in the journal", "chain/forks/block_store.py:BlockStore.put", "the heaviest branch", "disk"),
    Step("execute it, compare roots", "chain/execution/executor.py:Executor.connect", "bodies, one by one"),
    Step("the rule for its kind", "state/transition.py:apply", "codes, writes, terms"),
    Step(
        "deep enough: final, append, sync",
        "chain/execution/executor.py:Executor.settle_final",
        "layers of state",
        "disk",
    ),
    Step("the overlay goes to LMDB", "storage/index.py:Index.write_checkpoint", "", "disk"),
)


def draw_walk() -> str:
    """Two columns: a transaction from a caller to disk, a block from a peer to disk."""
    width, height, gap = 430, 46, 30
    columns = (("A transaction, from a caller to disk", TRANSACTION), ("A block, from a peer to disk", BLOCK))
    shapes = []
    for place, (title, steps) in enumerate(columns):
        x = 20 + place * (width + 40)
        shapes.append(_text(x, 28, title, "head"))
        for at, step in enumerate(steps):
            y = 44 + at * (height + gap)
            shapes += [
                _box(x, y, width, height, step.kind),
                _text(x + 12, y + 19, step.does.replace("`", ""), "name"),
                _text(x + 12, y + 37, step.where.replace(":", "  "), "path"),
            ]
            if step.gives:
                shapes += [
                    _arrow(f"M{x + 40} {y + height} V{y + height + gap}"),
                    _text(x + 52, y + height + 20, step.gives, "note"),
                ]
    rows = max(len(steps) for _, steps in columns)
    legend = 44 + rows * (height + gap) + 8
    shapes += [
        _box(20, legend - 13, 18, 16, "native"),
        _text(46, legend, "mostly in native code, the GIL released once a batch"),
        _box(490, legend - 13, 18, 16, "disk"),
        _text(516, legend, "on the disk"),
    ]
    return _document(2 * width + 80, legend + 20, "The walk of a transaction and of a block", shapes)


def missing_functions(steps: Sequence[Step] = (*TRANSACTION, *BLOCK)) -> Iterator[str]:
    """The steps whose function is not in the file that they name."""
    for step in steps:
        name, _, function = step.where.partition(":")
        path = ROOT / PACKAGE / name
        nodes: Sequence[ast.AST] = ast.parse(path.read_text()).body if path.exists() else ()
        for part in function.split("."):
            found = next((node for node in nodes if getattr(node, "name", None) == part), None)
            nodes = getattr(found, "body", ())
        if found is None:
            yield step.where


def pictures() -> dict[str, str]:
    """The pictures by their file names in ``docs/``."""
    return dict(zip(PICTURES, (draw_layers(), draw_walk()), strict=True))


def main() -> None:
    """Writes the pictures."""
    for name, picture in pictures().items():
        (ROOT / "docs" / name).write_text(picture)
        print(Path("docs") / name)


if __name__ == "__main__":
    main()
