"""``fastledger`` and ``python -m fastledger``: the command line, or a plain word on what it lacks."""

import sys

from fastledger.errors import InstallationError

EXIT_LEDGER = 5  # of cli/output.py, which cannot be imported where click is missing


def main() -> None:
    """Runs the command line; ends with a line on standard error and code 5 where a library for it is missing."""
    try:
        from fastledger.cli.main import main as command

        command(prog_name="fastledger")
    except InstallationError as error:
        print(f"fastledger: {error}", file=sys.stderr)
        sys.exit(EXIT_LEDGER)


if __name__ == "__main__":
    main()
