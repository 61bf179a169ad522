"""The choice of the engine, which a chain's genesis document names."""

from fastledger.consensus.engine import Engine
from fastledger.consensus.pow import PowEngine
from fastledger.consensus.solo import SoloEngine
from fastledger.model.genesis import Genesis


def make_engine(genesis: Genesis) -> Engine:
    """Returns a new engine of the kind that ``genesis`` names, with its parameters."""
    return PowEngine(genesis) if genesis.engine == "pow" else SoloEngine(genesis.proposers)
