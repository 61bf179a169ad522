"""Which method of the wallet makes which kind of transaction, where a body alone is not enough.

Most kinds need no builder: whoever has the fields makes the body, and :meth:`fastledger.Wallet.sign` signs it. Where
keys go into a body, or an envelope goes along, the wallet has a method for it, and ``@builds(Body)`` beside that
method says so. The command line takes its options from the method's signature.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastledger.model.body import Body
from fastledger.state.entity import EntityTable

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Lookup:
    """An argument that the chain knows: ``field`` of the entity of ``table`` whose key is the argument ``by``."""

    table: EntityTable[Any]
    by: str
    field: str


@dataclass(frozen=True, slots=True)
class Builder:
    """A method of a wallet that returns a signed transaction of the kind with ``body``, or that and its envelope.

    ``lookups`` say where arguments are to be found that the caller leaves out. ``heir`` names the argument, another
    wallet, that takes over from this one (:meth:`fastledger.Wallet.take_over`) with the transaction.
    """

    body: type[Body]
    method: Callable[..., Any]
    lookups: Mapping[str, Lookup]
    heir: str | None


BUILDERS: dict[type[Body], Builder] = {}


def builds(body: type[Body], *, heir: str | None = None, **lookups: Lookup) -> Callable[[MethodT], MethodT]:
    """Makes a decorator that declares a method of the wallet the builder of transactions with ``body``.

    Raises ``ValueError`` where there is one already.
    """

    def declare(method: MethodT) -> MethodT:
        if body in BUILDERS:
            raise ValueError(f"{body.__name__} has a builder already")
        BUILDERS[body] = Builder(body, method, lookups, heir)
        return method

    return declare
