"""The users: patients, doctors and a regulator who sign real transactions, some of which contradict each other.

Two transactions contradict each other where both claim the same thing: a registration of one key, a folder, record
or consent under one id. They are handed to different nodes at one time, so that each side of a fork holds another
one: on every chain at most one of them may succeed. Forged transactions go in too, and must not come out.
"""

import hashlib
import random
from dataclasses import dataclass, field

from beacon import Dim, Light, LightInColour

from fastledger.crypto.hpke import KemSuite
from fastledger.crypto.signing import SigningKey
from fastledger.model.body import Body
from fastledger.model.genesis import Authority
from fastledger.model.ids import identity_id
from fastledger.model.transaction import Transaction
from fastledger.subjects.chain import ChainActivate, ChainCancel
from fastledger.subjects.consent import ConsentGrant, ConsentRevoke, Purpose, Right
from fastledger.subjects.folder import FolderOpen
from fastledger.subjects.identity import IdentityEndorse, IdentityRegister, Role
from fastledger.subjects.record import RecordPut
from simulator.clock import START_MS
from simulator.options import MINUTE_MS, Options

FOREVER_MS = START_MS + 1_000 * 24 * 60 * MINUTE_MS
LONG_WINDOW_MS = 20 * 60 * MINUTE_MS
PERSON_STEP_MS = 90 * 1000

Claim = tuple[str, bytes]


def seeded_key(*parts: object) -> SigningKey:
    """A signing key that follows from its name."""
    return SigningKey.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest())


def seeded_bytes(count: int, *parts: object) -> bytes:
    """Bytes that follow from a name."""
    return hashlib.shake_256("/".join(map(str, parts)).encode()).digest(count)


class Person:
    """Somebody with a key; the KEM key is any point of X25519, nobody opens anything here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = seeded_key("person", name)
        self.identity = identity_id(self.key.public_key)
        self.kem = int(KemSuite.X25519).to_bytes(2, "big") + seeded_bytes(32, "kem", name)
        self.folder = seeded_bytes(16, "folder", name)

    @property
    def authority(self) -> Authority:
        return Authority(self.key.public_key, self.kem)


REGULATOR = Person("regulator")


@dataclass
class Wish:
    """Something a user wants on the chain: signed when it is time, sent again until it is final."""

    at_ms: int
    signer: Person
    body: Body
    claim: Claim
    window_ms: int = LONG_WINDOW_MS
    forged: bool = False
    optional: bool = False  # it may never become possible
    behind: int = 0  # not before the first node has this height, and then within some seconds; 0: whenever it is time
    transaction: Transaction | None = None
    tries: int = 0
    done: bool = False
    nodes: list[str] = field(default_factory=list)

    def sign(self, chain_id: bytes, now_ms: int, nonce: int) -> Transaction:
        """The transaction, signed at its first use; a forged one carries another's signature."""
        if self.transaction is None:
            issued_ms = START_MS + now_ms
            made = Transaction.sign(
                self.signer.key,
                chain_id=chain_id,
                body=self.body,
                issued_ms=issued_ms,
                expires_ms=issued_ms + self.window_ms,
                nonce=nonce,
            )
            self.transaction = _forge(made) if self.forged else made
        return self.transaction


def _forge(transaction: Transaction) -> Transaction:
    """A transaction with this content and the signature of somebody else over it."""
    signature = seeded_key("forger").sign(transaction.txid)
    return Transaction.decode(transaction.encoded[:-64] + signature)


class Script:
    """Draws the wishes of a run."""

    def __init__(self, options: Options, rng: random.Random) -> None:
        self._options = options
        self._rng = rng
        self._last_start_ms = options.faults_ms * 3 // 4
        self._wishes: list[Wish] = []
        self._people = 0
        self._things = 0

    def draw(self) -> list[Wish]:
        """Wishes in the order of their time."""
        while len(self._wishes) < self._options.transactions:
            self._life()
        if self._options.activation_height:
            self._activation(random.Random(f"releases/{self._options.seed}"))
        self._wishes.sort(key=lambda wish: wish.at_ms)
        return self._wishes

    def _person(self, role: Role, at_ms: int) -> Person:
        person = Person(f"{self._options.seed}/{self._people}")
        self._people += 1
        claim = ("identity", person.key.public_key)
        self._add(at_ms, person, IdentityRegister(role, person.kem), claim)
        if self._conflict():
            self._add(at_ms, person, IdentityRegister(Role.DEVICE, person.kem), claim)
        return person

    def _life(self) -> None:
        """A patient and a doctor: folder, records, a consent, its end."""
        rng = self._rng
        at_ms = rng.randint(0, self._last_start_ms)
        patient, doctor = self._person(Role.PATIENT, at_ms), self._person(Role.PRACTITIONER, at_ms)
        self._add(
            at_ms + PERSON_STEP_MS,
            REGULATOR,
            IdentityEndorse(doctor.identity, Role.PRACTITIONER, FOREVER_MS),
            ("endorsement", doctor.identity),
        )
        self._claimed(at_ms + PERSON_STEP_MS, patient, "folder", patient.folder)
        at_ms += 2 * PERSON_STEP_MS
        for _ in range(rng.randint(1, 4)):
            self._claimed(at_ms + rng.randint(0, PERSON_STEP_MS), patient, "record", self._id())
        consent = self._id()
        self._claimed(at_ms, patient, "consent", consent, doctor)
        if rng.random() < 0.5:
            self._add(at_ms + PERSON_STEP_MS, patient, ConsentRevoke(consent), ("end of consent", consent))
        if rng.random() < 0.3:
            body = self._body("consent", self._id(), patient, doctor)
            self._add(at_ms, patient, body, ("forged", self._id()), forged=True)

    def _activation(self, rng: random.Random) -> None:
        """The vote for rule set 2, and lights that mean something else from its height on, sent about then."""
        options = self._options
        height = options.activation_height
        vote = ChainActivate(rule_set=2, height=height, release="9.1.0")
        self._wishes.append(Wish(rng.randint(0, options.spacing_ms), REGULATOR, vote, ("vote", b"")))
        if options.cancels:
            at_ms = int((height - rng.uniform(0.5, 8)) * options.spacing_ms)
            self._wishes.append(Wish(at_ms, REGULATOR, ChainCancel(rule_set=2, height=height), ("vote", b"")))
        for number in range(30):
            name, level = seeded_bytes(16, "beacon", options.seed, number), rng.randint(1, 200)
            body = Light(name, level) if number % 4 else LightInColour(name, level, rng.randint(0, 1))
            if number % 10 == 0:
                body = Dim(name)
            wish = Wish(0, REGULATOR, body, ("light", name), optional=not isinstance(body, Light))
            wish.at_ms = rng.randint(0, options.spacing_ms)
            wish.behind = height + rng.choice((-9, -3, -2, -2, -1, -1, 0, 1))
            self._wishes.append(wish)

    def _claimed(
        self, at_ms: int, owner: Person, kind: str, name: bytes, grantee: Person = REGULATOR
    ) -> None:
        """A wish for the thing ``name``, and now and then another for the same thing."""
        self._add(at_ms, owner, self._body(kind, name, owner, grantee), (kind, name))
        if self._conflict():
            other = self._body(kind, name, owner, REGULATOR)
            self._add(at_ms, owner, other, (kind, name))

    def _body(self, kind: str, name: bytes, owner: Person, grantee: Person) -> Body:
        if kind == "folder":
            return FolderOpen([name], [bytes(40)], bytes(48))
        if kind == "record":
            return RecordPut(self._rng.randbytes(32), 1, owner.folder, name, self._rng.randint(1, 10**6))
        return ConsentGrant(
            name,
            [(owner.folder, 1)],
            grantee.identity,
            [bytes(40)],
            [Purpose.TREATMENT],
            Right.READ.value,
            FOREVER_MS,
            bytes(48),
        )

    def _add(self, at_ms: int, signer: Person, body: Body, claim: Claim, *, forged: bool = False) -> None:
        short = self._rng.random() < self._options.short_window_share
        window_ms = self._rng.randint(1, 15) * MINUTE_MS if short else LONG_WINDOW_MS
        # Within the faults' time, or a short run would mostly wait for late wishes in calm weather.
        at_ms = min(at_ms, self._options.faults_ms * 9 // 10)
        self._wishes.append(Wish(at_ms, signer, body, claim, window_ms, forged))

    def _conflict(self) -> bool:
        return self._rng.random() < self._options.conflict_share

    def _id(self) -> bytes:
        self._things += 1
        return seeded_bytes(16, "thing", self._options.seed, self._things)
