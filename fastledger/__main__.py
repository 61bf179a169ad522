"""``python -m fastledger``: the command line, where the script is not on the path."""

from fastledger.cli.main import main

main(prog_name="fastledger")
