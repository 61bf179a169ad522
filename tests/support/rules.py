"""Rules tested bare: a state in memory and the transition function, without a ledger, disk, keys or signatures.

*Given* a state that real rules have made, *when* somebody signs a body, *then* the result: its code, the entities, the
terms under which the transaction is found, the envelopes to destroy. ::

    state = State()
    patient, hospital = state.identity(Role.PATIENT), state.organisation()
    folder = state.folder(patient)
    consent = state.consent(patient, hospital, folder, until_ms=state.now_ms + 1000)

    state.when(hospital, AccessRead(...), at_ms=state.now_ms + 1000).is_refused(CONSENT_EXPIRED)
    state.when(patient, ConsentRevoke(consent=consent)).is_accepted()
    assert state.entity(CONSENTS, consent).revoked

A refused transaction must have left nothing: :meth:`State.when` checks that of every one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastledger import Code
from fastledger.crypto.hpke import KemSuite
from fastledger.model.body import Body
from fastledger.model.genesis import MAJORITY, Authority, Genesis, WorkParameters
from fastledger.model.ids import identity_id
from fastledger.model.terms import CODE, TABLE_BYTES, TERM_BYTES, code_name
from fastledger.state.context import Context
from fastledger.state.entity import EntityT, EntityTable
from fastledger.state.registry import BlockOpening
from fastledger.state.transition import apply
from fastledger.state.view import View
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.consent import ConsentGrant, Purpose, Right
from fastledger.subjects.folder import FolderOpen
from fastledger.subjects.identity import IdentityEndorse, IdentityRegister, Role
from fastledger.subjects.record import RecordPut

START_MS = 1_800_000_000_000
YEAR_MS = 365 * 86_400_000
# The lengths of what only key holders can tell from noise.
FOLDER_WRAP, KEY_WRAP = bytes(40), bytes(80)
KEM = KemSuite.X25519.to_bytes(2, "big") + bytes(32)


@dataclass(frozen=True)
class Person:
    """Somebody who signs: a 33-byte key and the 16-byte pseudonym of the identity."""

    key: bytes
    id: bytes


@dataclass(frozen=True)
class Result:
    """What one transaction left: ``terms`` as pairs of a table and a name, ``changed`` as state keys."""

    code: Code
    terms: tuple[tuple[bytes, bytes], ...]
    erased: tuple[bytes, ...]
    changed: frozenset[bytes]

    def is_accepted(self) -> "Result":
        """Asserts that the rule accepted."""
        assert self.code == Code.OK, f"refused: {self.code.slug}"
        return self

    def is_refused(self, code: Code) -> "Result":
        """Asserts that the rule refused for the reason ``code``."""
        assert self.code is code, f"{self.code.slug} instead of {code.slug}"
        return self

    def is_found_by(self, table: bytes, *names: bytes) -> "Result":
        """Asserts that the transaction is found under these names of a term table."""
        assert {(table, name) for name in names} <= set(self.terms)
        return self

    def is_not_found_by(self, table: bytes, *names: bytes) -> "Result":
        """Asserts that it is found under none of them."""
        assert not {(table, name) for name in names} & set(self.terms)
        return self


class State:
    """A state in memory, with a regulator from the genesis document in it; time stands at ``now_ms``."""

    def __init__(
        self,
        *,
        rule_set: int | None = None,
        work: WorkParameters | None = None,
        authorities: int = 1,
        activation_quorum: int = MAJORITY,
    ) -> None:
        """``authorities`` are the regulator and others, in :attr:`authorities`."""
        self.now_ms = START_MS
        self.height = 1
        self._drawn = 0
        self.regulator = self.stranger()
        self.authorities = [self.regulator, *(self.stranger() for _ in range(authorities - 1))]
        self.genesis = Genesis(
            START_MS,
            (self.regulator.key,),
            tuple(Authority(person.key, KEM) for person in self.authorities),
            salt=bytes(16),
            work=work,
            activation_quorum=activation_quorum,
        )
        self.chain_id = self.genesis.chain_id
        self.rules = REGISTRY.rules(rule_set or REGISTRY.newest_rule_set)
        self.view = View(_nothing)
        REGISTRY.install_genesis(self.view, self.genesis)

    # Given.

    def draw(self, length: int = 16) -> bytes:
        """Bytes that nobody had before: the same in every run."""
        self._drawn += 1
        return hashlib.shake_256(self._drawn.to_bytes(4, "big")).digest(length)

    def stranger(self) -> Person:
        """Somebody with a key that is not registered."""
        key = b"\x02" + self.draw(32)
        return Person(key, identity_id(key))

    def identity(self, role: Role, *, by: Person | None = None, until_ms: int | None = None) -> Person:
        """A registered identity, endorsed by ``by`` for a year or until ``until_ms`` if anybody is named."""
        person = self.stranger()
        self.given(person, IdentityRegister(role=role, kem=KEM))
        if by is not None:
            until_ms = self.now_ms + YEAR_MS if until_ms is None else until_ms
            self.given(by, IdentityEndorse(subject=person.id, role=role, until_ms=until_ms))
        return person

    def patient(self) -> Person:
        """A registered patient."""
        return self.identity(Role.PATIENT)

    def organisation(self) -> Person:
        """An organisation that the regulator endorsed."""
        return self.identity(Role.ORGANISATION, by=self.regulator)

    def folder(self, owner: Person) -> bytes:
        """A folder of the owner's at epoch 1."""
        folder = self.draw()
        self.given(owner, FolderOpen(folders=[folder], keys=[FOLDER_WRAP], wrap=KEY_WRAP))
        return folder

    def consent(
        self,
        owner: Person,
        grantee: Person,
        *folders: bytes,
        purposes: Sequence[Purpose] = (Purpose.TREATMENT,),
        rights: Right = Right.READ,
        until_ms: int | None = None,
    ) -> bytes:
        """A consent in folders at epoch 1."""
        body = grant(
            self.draw(),
            grantee,
            *folders,
            purposes=purposes,
            rights=rights,
            until_ms=self.now_ms + YEAR_MS if until_ms is None else until_ms,
        )
        self.given(owner, body)
        return body.consent

    def record(self, author: Person, folder: bytes, *, epoch: int = 1) -> bytes:
        """A record with one version."""
        record = self.draw()
        self.given(author, RecordPut(digest=self.draw(32), epoch=epoch, folder=folder, record=record, size=1))
        return record

    def given(self, signer: Person, body: Body, *, at_ms: int | None = None) -> Result:
        """A transaction of the past, which was accepted."""
        return self.when(signer, body, at_ms=at_ms).is_accepted()

    def given_entity(self, table: EntityTable[EntityT], key: bytes, value: EntityT) -> None:
        """An entity as it stands, where no rule of today leads to it."""
        self.view.store(table, key, value)
        self.view.commit()

    # When.

    def when(self, signer: Person, body: Any, *, at_ms: int | None = None) -> Result:
        """What becomes of a transaction in a block at ``at_ms``, or at the present time of the state."""
        before = dict(self.view.writes)
        context = Context(
            self.view,
            chain_id=self.chain_id,
            height=self.height,
            time_ms=self.now_ms if at_ms is None else at_ms,
        )
        code = apply(context, self.rules, signer.key, body)
        changed = self._changed_since(before)
        terms = context.terms.terms
        pairs = tuple(
            (terms[at : at + TABLE_BYTES], terms[at + TABLE_BYTES : at + TERM_BYTES])
            for at in range(0, len(terms), TERM_BYTES)
        )
        if code != Code.OK:
            assert not changed, "a refused transaction wrote"
            assert not context.erased, "a refused transaction erased"
            assert (CODE, code_name(code)) in pairs
        assert list(context.terms.counts) == [len(pairs)]
        return Result(code, pairs, tuple(context.erased), changed)

    def when_block(self, proposer: Person, *, height: int) -> frozenset[bytes]:
        """What is due at a block before its first transaction; returns the state keys that changed."""
        before = dict(self.view.writes)
        self.rules.open_block(self.view, BlockOpening(self.genesis, height, self.now_ms, proposer.key))
        self.height = height
        return self._changed_since(before)

    def _changed_since(self, before: dict[bytes, bytes | None]) -> frozenset[bytes]:
        after = dict(self.view.writes)
        return frozenset(key for key in before | after if before.get(key) != after.get(key))

    # Then.

    def entity(self, table: EntityTable[EntityT], *key: bytes | int) -> EntityT:
        """An entity that stands in the state; the parts of its key in their order."""
        found = self.find(table, *key)
        assert found is not None, f"no {table.name}"
        return found

    def find(self, table: EntityTable[EntityT], *key: bytes | int) -> EntityT | None:
        """An entity, or None where the state has none under the key."""
        return self.view.load(table, table.pack(*key))


def _nothing(key: bytes) -> bytes | None:
    return None


def grant(
    consent: bytes,
    grantee: Person,
    *folders: bytes,
    purposes: Sequence[Purpose] = (Purpose.TREATMENT,),
    rights: Right = Right.READ,
    until_ms: int = START_MS + YEAR_MS,
) -> ConsentGrant:
    """A grant in folders at epoch 1."""
    return ConsentGrant(
        consent=consent,
        folders=[(folder, 1) for folder in folders],
        grantee=grantee.id,
        keys=[FOLDER_WRAP] * len(folders),
        purposes=list(purposes),
        rights=rights.value,
        until_ms=until_ms,
        wrap=KEY_WRAP,
    )

