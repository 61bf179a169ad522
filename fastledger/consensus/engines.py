"""Which engine a chain runs: its genesis document says."""

from fastledger.consensus.engine import Engine
from fastledger.consensus.pow import PowEngine
from fastledger.consensus.solo import SoloEngine
from fastledger.model.genesis import Genesis


def make_engine(genesis: Genesis) -> Engine:
    """The engine that ``genesis`` names."""
    return PowEngine(genesis) if genesis.engine == "pow" else SoloEngine(genesis.proposers)
