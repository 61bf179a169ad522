"""``fastledger``: the command line's entry."""

import click

from fastledger.cli.bench import bench
from fastledger.cli.certs import certs
from fastledger.cli.demo.federation import net_demo
from fastledger.cli.demo.hospital import demo
from fastledger.cli.derived.entities import show
from fastledger.cli.derived.transact import transact
from fastledger.cli.federation import mine, peers
from fastledger.cli.genesis import genesis
from fastledger.cli.keeping import backup, collect_orphans, export, import_, prune, restore, snapshot
from fastledger.cli.keys import keys
from fastledger.cli.ledger import init, prove, query, reindex, status, verify, verify_receipt
from fastledger.cli.node import config, node
from fastledger.cli.records import ingest, matches, read
from fastledger.cli.stream import follow, submit
from fastledger.cli.top import top
from fastledger.version import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="fastledger")
def main() -> None:
    """An embeddable, permissioned ledger engine for medical transactions."""


COMMANDS = (
    *(init, demo, ingest, matches, read, transact, show, submit, query, follow, prove),
    *(verify_receipt, verify, reindex, status),
    *(keys, node, config, certs, top, bench),
    *(genesis, peers, mine, net_demo),
    *(backup, restore, prune, export, import_, snapshot, collect_orphans),
)
for command in COMMANDS:
    main.add_command(command)
