"""``fastledger net-demo``: four organisations, a network that parts and heals, and one chain at the end."""

import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastledger.cli.demo.organisations import NAMES, Member, NetOptions, NetWorld
from fastledger.cli.options import command_options
from fastledger.cli.output import Exit, Output
from fastledger.errors import FastLedgerError, InputError, LedgerError

if TYPE_CHECKING:
    from rich.console import RenderableType

WATCH_S = 0.25
LINES = 10
BATCH = 8
BATCH_PAUSE_S = 0.25
FINALITY_DEPTH = 24
SPACING_MS = 500
SETTLE_S = 90.0


@dataclass
class Submitter:
    """Registers patients through one node, until it is told to stop."""

    member: Member
    genesis: Any
    txids: list[bytes] = field(default_factory=list)
    refused: int = 0

    def run(self, stop: threading.Event) -> None:
        """Submits batches at a steady pace and counts refusals."""
        from fastledger.crypto.hpke import KemSuite
        from fastledger.subjects.identity import Role
        from fastledger.wallet.wallet import Wallet

        client = self.member.connect()
        while not stop.wait(BATCH_PAUSE_S):
            wallets = [Wallet.create(self.genesis.chain_id, suite=KemSuite.X25519) for _ in range(BATCH)]
            try:
                outcomes = client.submit(
                    [wallet.register(Role.PATIENT) for wallet in wallets], wait="accepted"
                )
            except FastLedgerError:
                self.refused += BATCH
                continue
            self.txids += [outcome.txid for outcome in outcomes if outcome.status == "accepted"]
            self.refused += sum(outcome.status != "accepted" for outcome in outcomes)


class Watcher:
    """Asks every node for its state, and keeps a log of what happened."""

    def __init__(self, world: NetWorld) -> None:
        self.world = world
        self.phase = "starting"
        self.began = time.monotonic()
        self.states: dict[str, dict[str, Any]] = {}
        self.lines: deque[str] = deque(maxlen=200)

    def say(self, text: str) -> None:
        """Adds a line to the log."""
        self.lines.append(f"{time.monotonic() - self.began:6.1f} s  {text}")

    def look(self) -> None:
        """Asks every node once for its state."""
        for name, member in self.world.members.items():
            try:
                fresh = member.status()
            except FastLedgerError:
                continue
            before = self.states.get(name, {})
            if before and fresh["reorganisations"] > before["reorganisations"]:
                dropped = fresh["stale_blocks"] - before["stale_blocks"]
                self.say(f"{name} went to a branch with more work: {dropped} of its blocks were dropped")
            self.states[name] = fresh

    def frame(self) -> "RenderableType":
        """Returns the frame that the terminal shows."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table

        table = Table(expand=True)
        for title in (
            "organisation",
            "tip",
            "height",
            "final",
            "waiting",
            "peers",
            "reorgs",
            "stale",
            "kH/s",
        ):
            table.add_column(title, justify="left" if title in ("organisation", "tip") else "right")
        tips = sorted({state["tip"] for state in self.states.values()})
        for name, state in self.states.items():
            colour = ("green", "yellow", "magenta", "cyan")[tips.index(state["tip"]) % 4]
            table.add_row(
                name,
                f"[{colour}]{state['tip'][:16]}[/]",
                *(f"{state[field]:,}" for field in ("tip_height", "final_height", "mempool", "peers")),
                *(f"{state[field]:,}" for field in ("reorganisations", "stale_blocks")),
                f"{state['mining']['hashes_per_second'] / 1000:,.0f}",
            )
        title = f"{self.phase} · {time.monotonic() - self.began:.0f} s · {len(tips)} tip(s)"
        lines = "\n".join(list(self.lines)[-LINES:])
        return Group(Panel(table, title=title, width=100), Panel(lines, height=LINES + 2, width=100))


@contextmanager
def _display(watcher: Watcher, output: Output) -> Iterator[Any]:
    """Yields a function that asks all nodes once and shows the answer.

    On a terminal it redraws the frame; elsewhere it prints the new lines.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if output.as_json or not console.is_terminal:
        told = 0

        def look() -> None:
            nonlocal told
            watcher.look()
            lines = list(watcher.lines)
            for line in lines[told:]:
                output.say(line)
            told = len(lines)

        yield look
        return
    with Live(watcher.frame(), console=console, auto_refresh=False) as live:

        def redraw() -> None:
            watcher.look()
            live.update(watcher.frame(), refresh=True)

        yield redraw


@click.command("net-demo")
@click.option("--together", type=click.IntRange(1, 600), default=8, show_default=True, help="Seconds before.")
@click.option("--parted", type=click.IntRange(1, 600), default=8, show_default=True, help="Seconds parted.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep everything here instead of nowhere.")
@command_options
def net_demo(output: Output, together: int, parted: int, folder: Path | None) -> None:
    """Run four organisations' nodes on this machine, part them two against two, heal them, and compare."""
    if parted * 1000 > FINALITY_DEPTH * SPACING_MS:
        raise InputError(
            f"parted longer than {FINALITY_DEPTH * SPACING_MS // 1000} s, each half could make blocks final"
        )
    with tempfile.TemporaryDirectory(prefix="fastledger-net-") as temporary:
        place = folder or Path(temporary)
        options = NetOptions(spacing_ms=SPACING_MS, finality_depth=FINALITY_DEPTH)
        with NetWorld(place, options) as world:
            answer = _play(world, output, together, parted)
    output.answer(answer, "The organisations agree" if answer["agreed"] else "The organisations DISAGREE")
    if not answer["agreed"]:
        raise click.exceptions.Exit(int(Exit.WRONG))


def _play(world: NetWorld, output: Output, together: int, parted: int) -> dict[str, Any]:
    """Plays the whole demonstration and returns its findings."""
    watcher = Watcher(world)
    watcher.say(
        f"chain {world.genesis.chain_id.hex()}: {len(world.members)} organisations, certificates made"
    )
    world.start()
    submitters = [Submitter(member, world.genesis) for member in world.members.values()]
    stop = threading.Event()
    threads = [threading.Thread(target=submitter.run, args=(stop,), daemon=True) for submitter in submitters]
    halves = set(NAMES[:2]), set(NAMES[2:])
    with _display(watcher, output) as look:
        watcher.say("nodes run, mine, and take registrations")
        for thread in threads:
            thread.start()
        _watch(watcher, look, "together", together)
        world.wires.part(*halves)
        watcher.say(f"the network parts: {' and '.join(NAMES[:2])} against {' and '.join(NAMES[2:])}")
        _watch(watcher, look, "parted", parted)
        heights = {name: state["tip_height"] for name, state in watcher.states.items()}
        world.wires.heal()
        watcher.say(f"the network heals; heights were {', '.join(f'{n} {h}' for n, h in heights.items())}")
        _watch(watcher, look, "healed", 2)
        stop.set()
        for thread in threads:
            thread.join()
        watcher.say(
            f"{sum(len(s.txids) for s in submitters):,} registrations were taken; waiting for finality"
        )
        settled = _settle(watcher, look, [txid for submitter in submitters for txid in submitter.txids])
        return _compare(watcher, look, submitters, settled)


def _watch(watcher: Watcher, look: Any, phase: str, seconds: float) -> None:
    watcher.phase = phase
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        look()
        time.sleep(WATCH_S)


def _settle(watcher: Watcher, look: Any, txids: list[bytes]) -> bool:
    """Waits until every node holds as many final transactions as were taken, and the tips are one.

    Returns False if not in time.
    """
    watcher.phase = "settling"
    members = watcher.world.members.values()
    deadline = time.monotonic() + SETTLE_S
    while any(member.connect().tip().transaction_count < len(txids) for member in members):
        if time.monotonic() > deadline:
            return False
        look()
        time.sleep(WATCH_S)
    watcher.say("everything is final everywhere; mining ends")
    try:
        watcher.world.end_mining(timeout_s=max(0.0, deadline - time.monotonic()))
    except LedgerError:
        return False
    look()
    return True


def _compare(watcher: Watcher, look: Any, submitters: list[Submitter], settled: bool) -> dict[str, Any]:
    """Compares tips, state roots, and every registration on every node."""
    world = watcher.world
    watcher.phase = "compared"
    look()
    txids = {txid for submitter in submitters for txid in submitter.txids}
    final_height = min(member.connect().tip().height for member in world.members.values())
    roots = {name: member.state_root(final_height) for name, member in world.members.items()}
    missing = {
        name: len(txids - {entry.txid for entry in _entries(member)})
        for name, member in world.members.items()
    }
    tips = {name: state["tip"] for name, state in watcher.states.items()}
    agreed = settled and len(set(tips.values())) == 1 and len(set(roots.values())) == 1
    if any(missing.values()):
        agreed = False
    look()
    return {
        "agreed": agreed,
        "registrations": len(txids),
        "refused": sum(submitter.refused for submitter in submitters),
        "tip_height": max(state["tip_height"] for state in watcher.states.values()),
        "final_height": final_height,
        "tips": sorted(set(tips.values())),
        "state_roots": sorted(set(roots.values())),
        "missing": missing,
        "reorganisations": {name: state["reorganisations"] for name, state in watcher.states.items()},
        "stale_blocks": {name: state["stale_blocks"] for name, state in watcher.states.items()},
        "duration_s": round(time.monotonic() - watcher.began, 1),
    }


def _entries(member: Member) -> Iterator[Any]:
    from fastledger.model.query import Query

    client, cursor = member.connect(), None
    while True:
        page = client.query(Query(cursor=cursor, limit=1_000))
        yield from page.entries
        cursor = page.next_cursor
        if cursor is None:
            return
