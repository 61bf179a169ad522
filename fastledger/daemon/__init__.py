"""The node as a process: it assembles the ledger, the node and its RPC server, and ends them in order."""

from fastledger.extras import require

require("node")
