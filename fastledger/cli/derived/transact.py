"""``fastledger tx``: a command for each kind of transaction that the subjects declare."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastledger.cli.derived.names import ids_in
from fastledger.cli.options import (
    LedgerCommand,
    LedgerTarget,
    command_options,
    keystore_option,
    ledger_options,
    password_option,
    read_password,
)
from fastledger.cli.output import Exit, Output
from fastledger.errors import Code, InputError

if TYPE_CHECKING:
    from fastledger.cli.derived.plans import CommandPlan, Made
    from fastledger.client.api import LedgerApi
    from fastledger.crypto.keystore import Keystore
    from fastledger.model.outcome import Outcome
    from fastledger.model.transaction import Transaction
    from fastledger.state.kind import Kind
    from fastledger.wallet.wallet import Wallet


class _Subjects(click.Group):
    """Its commands are the subjects that have kinds; they are looked up when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the subjects' names."""
        from fastledger.subjects.catalogue import REGISTRY

        return [subject.name for subject in REGISTRY.subjects if subject.kinds]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the commands of one subject, None where there is none of that name."""
        from fastledger.subjects.catalogue import REGISTRY

        found = next((each for each in REGISTRY.subjects if each.name == cmd_name and each.kinds), None)
        return None if found is None else _Kinds(cmd_name, help=f"{found.summary}.", short_help=found.summary)


class _Kinds(click.Group):
    """Its commands are the kinds of one subject."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the actions."""
        from fastledger.subjects.catalogue import REGISTRY

        return [kind.action for kind in REGISTRY.kinds_of(self.name or "")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command of one kind, None where there is none of that name."""
        from fastledger.subjects.catalogue import REGISTRY

        kind = REGISTRY.kinds.get(f"{self.name}.{cmd_name}")
        return None if kind is None else command_of(kind)


@click.command("tx", cls=_Subjects)
def transact() -> None:
    """Sign a transaction of any kind and submit it: tx SUBJECT ACTION LEDGER."""


def command_of(kind: "Kind") -> click.Command:
    """Returns the command that signs and submits a transaction of ``kind``."""
    from fastledger.cli.derived.fields import PREFIX
    from fastledger.cli.derived.plans import plan_of

    @click.command(kind.action, cls=LedgerCommand, short_help=kind.summary.replace("``", ""))
    @ledger_options
    @keystore_option
    @password_option
    @click.option("--as", "entry", required=True, help="Name of the wallet that signs.")
    @command_options
    def run(
        output: Output,
        target: LedgerTarget,
        keystore_path: Path,
        password_file: Path | None,
        entry: str,
        **arguments: Any,
    ) -> None:
        from fastledger.crypto.keystore import Keystore

        keystore = Keystore.open(keystore_path, read_password(password_file))
        values = {name.removeprefix(PREFIX): value for name, value in arguments.items()}
        with target.open() as ledger:
            made, outcome = _submit(plan, ledger, keystore, entry, values)
            time_ms = None if outcome.height is None else ledger.get(outcome.txid).time_ms
        output.answer(_answer(made.transaction, outcome, time_ms))
        if not outcome.ok:
            raise click.exceptions.Exit(int(Exit.WRONG))

    plan = plan_of(kind, {flag for param in run.params for flag in param.opts})
    run.help = _help(plan.summary, kind)
    run.params[1:1] = plan.options
    return run


def _help(summary: str, kind: "Kind") -> str:
    """What is signed and what the rule does, from their docstrings, without the marks of code."""
    text = f"{inspect.cleandoc(summary)}\n\n{inspect.cleandoc(kind.rule.__doc__ or '')}"
    return re.sub(r":\w+:`~?([^`]*)`", r"\1", text.replace("``", ""))


def _submit(
    plan: "CommandPlan", ledger: "LedgerApi", keystore: "Keystore", entry: str, values: Mapping[str, Any]
) -> "tuple[Made, Outcome]":
    """Signs and submits; folder keys that were made are in the keystore before anything is sent.

    The wallets are as they were before in the keystore where the ledger says no.
    """
    from fastledger.wallet.wallet import Wallet

    wallets = {entry: Wallet.load(keystore, entry)}
    wallet = wallets[entry]
    values = dict(values)
    if plan.heir is not None:
        name = values[plan.heir]
        values[plan.heir] = wallets[name] = Wallet.load(keystore, name)
    for each in wallets.values():
        _join(each, ledger.chain_id)
    before = {name: keystore.get(name) for name in wallets}
    made = plan.make(wallet, ledger, values)
    if plan.heir is not None:
        values[plan.heir].take_over(wallet)
    for name, each in wallets.items():
        each.save(keystore, name)
    changed = {name: secret for name, secret in before.items() if keystore.get(name) != secret}
    if changed:
        keystore.save()
    outcome = ledger.submit([made.transaction], made.blobs)[0]
    if changed and not outcome.ok:
        for name, secret in changed.items():
            keystore.put(name, secret)
        keystore.save()
    return made, outcome


def _join(wallet: "Wallet", chain_id: bytes) -> None:
    """Binds a wallet to the chain if it is bound to none; one of another chain stays with that, and is refused."""
    try:
        wallet.chain_id  # noqa: B018 - it raises where there is none
    except InputError:
        wallet.join(chain_id)


def _answer(transaction: "Transaction", outcome: "Outcome", time_ms: int | None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "txid": outcome.txid.hex(),
        "kind": transaction.kind,
        "status": outcome.status,
        "code": outcome.code.slug,
    }
    if outcome.code != Code.OK:
        answer["reason"] = outcome.code.text
    if time_ms is not None:
        answer |= {"height": outcome.height, "index": outcome.index, "time_ms": time_ms}
    return {**answer, **ids_in(transaction)}
