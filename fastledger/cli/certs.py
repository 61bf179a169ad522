"""``fastledger certs``: a small authority for the network's mutual TLS."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from fastledger.cli.options import CommandT, command_options
from fastledger.cli.output import Output

authority_argument = click.argument("folder", metavar="AUTHORITY", type=click.Path(path_type=Path))
name_option = click.option(
    "--for", "names", multiple=True, help="DNS name or address that it is valid for; may be repeated."
)


def days_option(default: int) -> Callable[[CommandT], CommandT]:
    """Makes the option ``--days``, how long a certificate or authority is valid."""
    return click.option("--days", type=click.IntRange(1, 36_500), default=default, show_default=True)


@click.group()
def certs() -> None:
    """Make, issue, renew and revoke the certificates of a network; AUTHORITY is a directory to keep offline."""


@certs.command("init")
@authority_argument
@click.option(
    "--within",
    "names",
    multiple=True,
    help="DNS domain or network to bind the authority to; may be repeated.",
)
@days_option(1_825)
@command_options
def init_authority(output: Output, folder: Path, names: tuple[str, ...], days: int) -> None:
    """Make an authority."""
    from fastledger.node.authority import CertificateAuthority

    CertificateAuthority.create(folder, names=names, days=days)
    output.answer({"bundle": str(folder / "bundle.pem"), "revoked": str(folder / "revoked.pem")})


@certs.command()
@authority_argument
@click.argument("name")
@click.option("--kind", type=click.Choice(["node", "client"]), default="client", show_default=True)
@name_option
@days_option(90)
@command_options
def issue(
    output: Output,
    folder: Path,
    name: str,
    kind: Literal["node", "client"],
    names: tuple[str, ...],
    days: int,
) -> None:
    """Issue a key and a certificate to NAME."""
    from fastledger.node.authority import CertificateAuthority

    issued = CertificateAuthority.open(folder).issue(name, kind, names=names, days=days)
    output.answer(_answer(folder, name, issued.not_after_ms))


@certs.command()
@authority_argument
@click.argument("name")
@days_option(90)
@command_options
def renew(output: Output, folder: Path, name: str, days: int) -> None:
    """Issue a new key and certificate to NAME; the old one stays good until it ends."""
    from fastledger.node.authority import CertificateAuthority

    output.answer(_answer(folder, name, CertificateAuthority.open(folder).renew(name, days=days).not_after_ms))


@certs.command()
@authority_argument
@click.argument("name")
@command_options
def revoke(output: Output, folder: Path, name: str) -> None:
    """Revoke every certificate of NAME; nodes that have the new revoked.pem refuse it."""
    from fastledger.node.authority import CertificateAuthority

    count = CertificateAuthority.open(folder).revoke(name)
    output.answer({"name": name, "revoked": count, "list": str(folder / "revoked.pem")})


@certs.command()
@authority_argument
@click.option("--finish", is_flag=True, help="Stop trusting the older authorities.")
@days_option(1_825)
@command_options
def rollover(output: Output, folder: Path, finish: bool, days: int) -> None:
    """Begin a new authority beside the old one, or with --finish end the old one."""
    from fastledger.node.authority import CertificateAuthority

    authority = CertificateAuthority.open(folder)
    if finish:
        authority.retire()
    else:
        authority.rollover(days=days)
    output.answer({"trusted": list(authority.authorities), "bundle": str(folder / "bundle.pem")})


@certs.command()
@authority_argument
@command_options
def show(output: Output, folder: Path) -> None:
    """List what was issued."""
    from fastledger.node.authority import CertificateAuthority

    authority = CertificateAuthority.open(folder)
    output.answer(
        {
            "authorities": list(authority.authorities),
            "issued": [
                {
                    "name": entry.name,
                    "kind": entry.kind,
                    "for": ",".join(entry.names),
                    "authority": entry.authority,
                    "serial": entry.serial,
                    "not_after_ms": entry.not_after_ms,
                    "revoked": bool(entry.revoked_ms),
                }
                for entry in authority.issued
            ],
        }
    )


def _answer(folder: Path, name: str, not_after_ms: int) -> dict[str, Any]:
    return {
        "certificate": str(folder / f"{name}.pem"),
        "key": str(folder / f"{name}.key"),
        "bundle": str(folder / "bundle.pem"),
        "not_after_ms": not_after_ms,
    }
