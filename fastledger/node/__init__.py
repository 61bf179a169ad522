"""The node: what turns a ledger into a service. Clocks, threads and queues live here, rules do not."""

from fastledger.extras import require

require("node")
