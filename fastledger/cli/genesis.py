"""The command ``fastledger genesis``: the document that organisations agree on before the first block."""

from pathlib import Path
from typing import Any

import click
import msgspec

from fastledger.cli.options import HexBytes, command_options
from fastledger.cli.output import Output
from fastledger.errors import Code, InputError
from fastledger.limits import AUTHORITIES_MAX, RULE_SET_MAX

PUBLIC_BYTES_MAX = 64 * 1024
PUBLIC_KEY_BYTES = 33


class Reward(click.ParamType[tuple[int, int]]):
    """A reward as ``HEIGHT:CREDITS``; its value is both numbers."""

    name = "height:credits"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Returns both numbers, or fails with a usage error."""
        if isinstance(value, tuple):
            return value
        height, colon, credits = str(value).partition(":")
        if not colon or not height.isdecimal() or not credits.isdecimal():
            self.fail("is not HEIGHT:CREDITS", param, ctx)
        return int(height), int(credits)


@click.group()
def genesis() -> None:
    """Make and show genesis documents; who shares a chain has the same one."""


@genesis.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--engine", type=click.Choice(["pow"]), default="pow", show_default=True)
@click.option(
    "--proposer",
    "proposers",
    type=HexBytes(PUBLIC_KEY_BYTES),
    multiple=True,
    required=True,
    help="Public key of a node that may seal blocks, from `fastledger node key`; repeated for each.",
)
@click.option(
    "--authority",
    "authorities",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Public keys of a regulator, from `fastledger keys public`; may be repeated.",
)
@click.option("--spacing-ms", type=int, help="Milliseconds between blocks that the difficulty aims at.")
@click.option("--finality-depth", type=int, help="Blocks above a block that make it final.")
@click.option("--window-blocks", type=int, help="Blocks over which the difficulty adapts.")
@click.option(
    "--first-hashes",
    type=click.IntRange(1, 2**200),
    help="Hashes that the first block costs: about the members' hashes a second x spacing.",
)
@click.option(
    "--rule-set",
    type=click.IntRange(1, RULE_SET_MAX),
    help="Rule set in force from the first block on  [default: the newest of this release].",
)
@click.option(
    "--activation-quorum",
    type=click.IntRange(1, AUTHORITIES_MAX),
    help="Authorities that have to agree on a newer rule set  [default: more than half].",
)
@click.option(
    "--reward",
    "rewards",
    type=Reward(),
    multiple=True,
    help="Credits for each block from a height on, ascending from height 0; may be repeated.",
)
@command_options
def create(
    output: Output,
    file: Path,
    engine: str,
    proposers: tuple[bytes, ...],
    authorities: tuple[Path, ...],
    rewards: tuple[tuple[int, int], ...],
    first_hashes: int | None,
    rule_set: int | None,
    activation_quorum: int | None,
    **numbers: int | None,
) -> None:
    """Write a new document to FILE; every organisation begins its ledger with it."""
    from fastledger.clock import system_clock_ms
    from fastledger.crypto.work import target_to_bits
    from fastledger.model.genesis import MAJORITY, Genesis, WorkParameters
    from fastledger.subjects.catalogue import REGISTRY

    if len(set(proposers)) != len(proposers):
        raise InputError("two proposers have one key", code=Code.BAD_GENESIS)
    given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if first_hashes is not None:
        easiest = WorkParameters().limit_bits
        bits = target_to_bits(min(2**256 // first_hashes, 2**256 - 1))
        given["initial_bits"] = easiest if first_hashes <= 2 else bits
    made = Genesis.create(
        created_ms=system_clock_ms(),
        proposers=proposers,
        authorities=tuple(_authority(path) for path in authorities),
        engine=engine,
        work=WorkParameters(**given, rewards=rewards),
        rule_set=rule_set or REGISTRY.newest_rule_set,
        activation_quorum=MAJORITY if activation_quorum is None else activation_quorum,
    )
    try:
        with file.open("xb") as out:
            out.write(made.encoded)
    except FileExistsError:
        raise InputError("a file of that name is there already", code=Code.BAD_GENESIS) from None
    output.answer({"genesis": str(file), **_described(made)}, "A new chain")


@genesis.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@command_options
def show(output: Output, file: Path) -> None:
    """Show what FILE says, and its digest, which organisations compare."""
    output.answer(_described(load_genesis(file)))


def load_genesis(file: Path) -> Any:
    """Returns the genesis document in a file; raises ``InputError``."""
    from fastledger.limits import GENESIS_BYTES_MAX
    from fastledger.model.genesis import Genesis

    with file.open("rb") as opened:
        data = opened.read(GENESIS_BYTES_MAX + 1)
    if len(data) > GENESIS_BYTES_MAX:
        raise InputError("the document is too long", code=Code.BAD_GENESIS)
    return Genesis.decode(data)


def _described(document: Any) -> dict[str, Any]:
    described: dict[str, Any] = {
        "chain_id": document.chain_id.hex(),
        "digest": document.digest.hex(),
        "engine": document.engine,
        "created_ms": document.created_ms,
        "proposers": [key.hex() for key in document.proposers],
        "authorities": [authority.key.hex() for authority in document.authorities],
        "rule_set": document.rule_set,
        "activation_quorum": document.activation_quorum,
    }
    if document.work is not None:
        described |= document.work.to_map()
        described["rewards"] = [f"{height}:{credits}" for height, credits in document.work.rewards]
    return described


class PublicKeys(msgspec.Struct, forbid_unknown_fields=True):
    """The public keys of a wallet, in hexadecimal, which others need before the wallet's chain begins."""

    key: str
    kem: str


def _authority(path: Path) -> Any:
    from fastledger.model.genesis import Authority

    try:
        with path.open("rb") as file:
            keys = msgspec.json.decode(file.read(PUBLIC_BYTES_MAX), type=PublicKeys)
        return Authority(bytes.fromhex(keys.key), bytes.fromhex(keys.kem))
    except (msgspec.MsgspecError, ValueError):
        raise InputError("the authority's file holds no public keys", code=Code.BAD_GENESIS) from None
