"""``fastledger keys``: the keystore and the wallets in it."""

import json
from pathlib import Path
from typing import Any

import click

from fastledger.cli.options import (
    CHAIN_ID,
    ask_password,
    command_options,
    keystore_option,
    password_option,
    read_password,
)
from fastledger.cli.output import Output


@click.group()
def keys() -> None:
    """Make, list and re-seal wallets in a keystore."""


@keys.command()
@keystore_option
@password_option
@command_options
def create(output: Output, keystore_path: Path, password_file: Path | None) -> None:
    """Make an empty keystore."""
    from fastledger.crypto.keystore import Keystore

    Keystore.create(keystore_path, read_password(password_file, confirm=True))
    output.answer({"keystore": str(keystore_path)})


@keys.command("new")
@click.argument("name")
@keystore_option
@password_option
@click.option("--chain", "chain_id", type=CHAIN_ID, help="The chain's id, from `fastledger status`.")
@click.option(
    "--suite", type=click.Choice(["hybrid", "x25519"]), default="hybrid", help="How keys are wrapped to it."
)
@command_options
def new(
    output: Output,
    name: str,
    keystore_path: Path,
    password_file: Path | None,
    chain_id: bytes | None,
    suite: str,
) -> None:
    """Make a wallet called NAME."""
    from fastledger.crypto.hpke import KemSuite
    from fastledger.crypto.keystore import Keystore
    from fastledger.errors import Code, InputError
    from fastledger.wallet.wallet import Wallet

    keystore = Keystore.open(keystore_path, read_password(password_file))
    if name in keystore.names():
        raise InputError("the keystore holds a wallet of that name", code=Code.BAD_KEYSTORE)
    kem = KemSuite.MLKEM768_X25519 if suite == "hybrid" else KemSuite.X25519
    wallet = Wallet.create(chain_id, suite=kem)
    wallet.save(keystore, name)
    keystore.save()
    output.answer({"name": name, "identity": wallet.identity.hex(), "public_key": wallet.public_key.hex()})


@keys.command("list")
@keystore_option
@password_option
@command_options
def list_wallets(output: Output, keystore_path: Path, password_file: Path | None) -> None:
    """List the entries: of wallets their identities and how many folder keys each holds."""
    from fastledger.crypto.keystore import Keystore
    from fastledger.errors import KeystoreError
    from fastledger.wallet.wallet import Wallet

    keystore = Keystore.open(keystore_path, read_password(password_file))
    wallets: list[dict[str, Any]] = []
    for name in keystore.names():
        try:
            wallet = Wallet.load(keystore, name)
        except KeystoreError:
            wallets.append({"name": name, "identity": None, "folders": 0})
            continue
        wallets.append({"name": name, "identity": wallet.identity.hex(), "folders": len(wallet.folders)})
    output.answer({"wallets": wallets})


@keys.command()
@keystore_option
@password_option
@click.option(
    "--new-password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File whose first line is the new password; else it is asked for.",
)
@command_options
def passwd(
    output: Output, keystore_path: Path, password_file: Path | None, new_password_file: Path | None
) -> None:
    """Seal the keystore under another password."""
    from fastledger.crypto.keystore import Keystore

    keystore = Keystore.open(keystore_path, read_password(password_file))
    if new_password_file is None:
        fresh = ask_password("New password", confirm=True)
    else:
        fresh = read_password(new_password_file)
    keystore.change_password(fresh)
    output.answer({"keystore": str(keystore_path)})


@keys.command()
@click.argument("name")
@keystore_option
@password_option
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File for the public keys.")
@command_options
def public(output: Output, name: str, keystore_path: Path, password_file: Path | None, out: Path) -> None:
    """Write the public keys of wallet NAME, as a genesis document wants them of a regulator."""
    from fastledger.crypto.keystore import Keystore
    from fastledger.wallet.wallet import Wallet

    wallet = Wallet.load(Keystore.open(keystore_path, read_password(password_file)), name)
    authority = wallet.authority
    out.write_text(json.dumps({"key": authority.key.hex(), "kem": authority.kem.hex()}) + "\n")
    output.answer({"name": name, "identity": wallet.identity.hex(), "public_keys": str(out)})
