"""The commands ``fastledger peers`` and ``fastledger mine``, by which an operator acts on the federation."""

import re
from typing import Any

import click

from fastledger.cli.options import LedgerCommand, LedgerTarget, command_options, ledger_options
from fastledger.cli.output import Output
from fastledger.errors import InputError

_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Duration(click.ParamType[int]):
    """A duration as a number with s, m, h or d; its value is in milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Returns the milliseconds, or fails with a usage error."""
        found = _DURATION.fullmatch(str(value))
        if found is None:
            self.fail("is not a number with s, m, h or d", param, ctx)
        return int(found[1]) * _UNIT_MS[found[2]]


@click.group()
def peers() -> None:
    """See, add and shut out the other organisations' nodes; LEDGER is a node's URL."""


@peers.command("list", cls=LedgerCommand)
@ledger_options
@command_options
def list_peers(output: Output, target: LedgerTarget) -> None:
    """List links and bans."""
    with target.connect() as client:
        found = client.peers()
    output.table(
        "peers",
        ("organisation", "address", "by", "rules", "height", "rtt ms", "in", "out", "points"),
        [
            (
                peer["organisation"],
                peer["address"],
                "them" if peer["inbound"] else "us",
                peer["rule_set"] or "-",
                peer["height"] if peer["ready"] else "(handshake)",
                peer["rtt_ms"] if peer["rtt_ms"] is not None else "-",
                f"{peer['bytes_received']:,}",
                f"{peer['bytes_sent']:,}",
                peer["points"],
            )
            for peer in found["peers"]
        ],
    )
    output.answer(found if output.as_json else {"bans": found["bans"]})


@peers.command(cls=LedgerCommand)
@ledger_options
@click.argument("address", metavar="HOST:PORT")
@command_options
def add(output: Output, target: LedgerTarget, address: str) -> None:
    """Call HOST:PORT from now on, also after a restart."""
    with target.connect() as client:
        client.add_peer(address)
    output.answer({"added": address})


def _subject(function: Any) -> Any:
    for decorate in (
        click.option("--address", help="Host of a node."),
        click.option("--organisation", help="Name in an organisation's certificate."),
    ):
        function = decorate(function)
    return function


@peers.command(cls=LedgerCommand)
@ledger_options
@_subject
@click.option("--for", "duration_ms", type=Duration(), default="1d", show_default=True, help="How long.")
@command_options
def ban(
    output: Output, target: LedgerTarget, organisation: str | None, address: str | None, duration_ms: int
) -> None:
    """Shut an organisation, or a host, out and close its links."""
    with target.connect() as client:
        client.ban(organisation=organisation, address=address, duration_ms=duration_ms)
    output.answer({"banned": organisation or address, "duration_ms": duration_ms})


@peers.command(cls=LedgerCommand)
@ledger_options
@_subject
@command_options
def unban(output: Output, target: LedgerTarget, organisation: str | None, address: str | None) -> None:
    """Let an organisation, or a host, in again."""
    with target.connect() as client:
        if not client.unban(organisation=organisation, address=address):
            raise InputError("it was not shut out")
    output.answer({"unbanned": organisation or address})


@click.group()
def mine() -> None:
    """Begin, end and watch a node's search for blocks; LEDGER is a node's URL."""


@mine.command("on", cls=LedgerCommand)
@ledger_options
@command_options
def mine_on(output: Output, target: LedgerTarget) -> None:
    """Search blocks until the node ends; `federation.mine` in its configuration makes that last."""
    with target.connect() as client:
        output.answer(client.mine(on=True))


@mine.command("off", cls=LedgerCommand)
@ledger_options
@command_options
def mine_off(output: Output, target: LedgerTarget) -> None:
    """Search no more until the node ends or is told to."""
    with target.connect() as client:
        output.answer(client.mine(on=False))


@mine.command("status", cls=LedgerCommand)
@ledger_options
@command_options
def mine_status(output: Output, target: LedgerTarget) -> None:
    """Show whether and how fast the node searches, and what it found."""
    with target.connect() as client:
        output.answer(client.mine())
