"""All subjects of this release. Importing this module declares them; this list is the only one (SPEC-RULE-1).

Decoders, rule sets, queries, a node's methods, the command line and the tables of the documentation follow from what
the modules declare. Whoever reads transactions takes :data:`REGISTRY` from here, so that none is unknown to it.
"""

from fastledger.state.registry import REGISTRY
from fastledger.subjects import (
    access,
    chain,
    consent,
    folder,
    identity,
    record,
    reward,
)

__all__ = [
    "REGISTRY",
    "access",
    "chain",
    "consent",
    "folder",
    "identity",
    "record",
    "reward",
]
