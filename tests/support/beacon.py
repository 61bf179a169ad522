"""A demonstration subject whose second release has more: what rule sets are tried with.

Release 1 lights beacons. Release 2 (rule set 2) has another body and another rule for the same kind, whose old form
still fits the new one, a kind of its own, and something to do at each block. A process has one of the releases
(:func:`declared`, or ``python beacon.py RELEASE COMMAND …`` for the command line); in one process several chains may
each be of either (:func:`release`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fastledger.limits import ACTIVATION_NOTICE_BLOCKS_MIN
from fastledger.model.body import Body
from fastledger.model.fields import Id16, UInt32
from fastledger.state.context import Context
from fastledger.state.entity import Entity, EntityTable
from fastledger.state.registry import BlockOpening, Registry
from fastledger.state.subject import Subject
from fastledger.state.view import Refusal, View
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.identity import actor

NOTICE = ACTIVATION_NOTICE_BLOCKS_MIN
COUNTER = bytes(16)


class Beacon(Entity, frozen=True):
    """A light and how bright it is; under :data:`COUNTER` how many blocks there were under rule set 2."""

    level: UInt32


class Light(Body, frozen=True):
    """Lights a beacon."""

    beacon: Id16
    level: UInt32


class LightInColour(Body, frozen=True):
    """Lights a beacon in a colour; white, which is 0, was the only one before."""

    beacon: Id16
    level: UInt32
    colour: UInt32 = 0


class Dim(Body, frozen=True):
    """Makes a beacon as dark as can be."""

    beacon: Id16


class Beacons:
    """The subject as one release declares it."""

    def __init__(self, newest: int) -> None:
        self.subject = Subject("beacon", number=240, summary="Lights, for tests of rule sets")
        self.table: EntityTable[Beacon] = self.subject.table(1, "beacon", Beacon)
        self.too_bright = self.subject.refusal(1, "too-bright", "the light blinds")
        self._declare_first()
        if newest > 1:
            self._declare_second()

    def _declare_first(self) -> None:
        @self.subject.rule("light")
        def light(ctx: Context, body: Light) -> None:
            actor(ctx)
            if body.level > 100:
                raise Refusal(self.too_bright)
            ctx.view.store(self.table, body.beacon, Beacon(body.level))

    def _declare_second(self) -> None:
        @self.subject.rule("light", since=2)
        def light(ctx: Context, body: LightInColour) -> None:
            actor(ctx)
            ctx.view.store(self.table, body.beacon, Beacon(1_000 * (body.colour + 1) + body.level))

        @self.subject.rule("dim", since=2)
        def dim(ctx: Context, body: Dim) -> None:
            actor(ctx)
            ctx.view.store(self.table, body.beacon, Beacon(0))

        @self.subject.at_block(since=2)
        def count(view: View, opening: BlockOpening) -> None:
            before = view.load(self.table, COUNTER)
            view.store(self.table, COUNTER, Beacon(1 + (before.level if before is not None else 0)))


@contextmanager
def declared(newest: int = 2) -> Iterator[Beacons]:
    """This process is of the release with the rule sets up to ``newest``, for the length of the block."""
    beacons = Beacons(newest)
    try:
        yield beacons
    finally:
        beacons.subject.withdraw()


def release(newest: int) -> Registry:
    """What a release with the rule sets up to ``newest`` knows, beside newer ones in the same process."""
    if newest >= REGISTRY.newest_rule_set:
        return REGISTRY
    older = Registry()
    for subject in REGISTRY.subjects:
        older.add(subject)
        for table in subject.tables.values():
            older.add_table(table)
        for kind in subject.kinds:
            if kind.since <= newest:
                older.add_kind(kind)
    # Nobody else needs a registry that lacks a part of another one.
    older._genesis_hooks = [hook for hook in REGISTRY._genesis_hooks if hook[1] <= newest]
    older._block_hooks = [hook for hook in REGISTRY._block_hooks if hook[1] <= newest]
    return older


if __name__ == "__main__":
    Beacons(int(sys.argv.pop(1)))
    from fastledger.cli.main import main

    main()
