"""The command line: thin commands over the façade, the wallet and the ingest."""

from fastledger.cli.interrupts import hear_interrupts
from fastledger.extras import require

require("cli")
# Before the imports of the commands, in which most of a short command's time goes.
hear_interrupts()
