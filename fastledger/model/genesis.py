"""The genesis document: what all nodes of a chain agree on before the first block (SPEC-GEN-1).

Deterministic CBOR map; ``chain_id`` is the first 8 bytes of its SHA-256 and stands in every transaction, so that
nothing signed for one chain is valid on another.
"""

import hashlib
import os
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Final

from fastledger.crypto.hpke import public_key_suite
from fastledger.crypto.work import bits_to_target, target_to_bits
from fastledger.errors import Code, EnvelopeError, FormatVersionError, InputError
from fastledger.limits import (
    ACTIVATION_NOTICE_BLOCKS_MIN,
    AUTHORITIES_MAX,
    FINALITY_DEPTH_MAX,
    REWARD_CREDITS_MAX,
    REWARD_STEPS_MAX,
    RULE_SET_MAX,
    WORK_SPACING_MS_MAX,
    WORK_WINDOW_BLOCKS_MAX,
    WORK_WINDOW_BLOCKS_MIN,
)
from fastledger.model.block import ZERO32, Block, Header, HeaderBody
from fastledger.model.body import RULE_SET_FIRST, newest_rule_set
from fastledger.model.codec import decode, encode
from fastledger.reprs import BriefRepr
from fastledger.version import GENESIS_FORMAT_VERSION

CHAIN_ID_BYTES = 8
ENGINES = ("solo", "pow")
_KEYS = frozenset(
    (
        "version",
        "created_ms",
        "engine",
        "proposers",
        "authorities",
        "salt",
        "rule_set",
        "activation_quorum",
    )
)
# Stands for an activation quorum of more than half of the authorities.
MAJORITY: Final = -1
EMPTY_ROOT = hashlib.sha256(b"").digest()


def _bad_genesis(message: str) -> InputError:
    return InputError(message, code=Code.BAD_GENESIS)


@dataclass(frozen=True, repr=False)
class Authority(BriefRepr):
    """A key that is a regulator from the first block on; ``kem`` is its key-encapsulation public key."""

    key: bytes
    kem: bytes


@dataclass(frozen=True)
class WorkParameters:
    """The parameters that the rules of the ``pow`` engine leave to the chain (SPEC-WORK-9).

    ``bits`` are compact targets: block 1 has ``initial_bits``, no block an easier target than ``limit_bits``. The
    target follows the mean interval of about ``window_blocks`` blocks. ``rewards`` are pairs (height, credits of
    each block from this height on), ascending from height 0.
    """

    spacing_ms: int = 10_000
    initial_bits: int = 0x1E00FFFF
    limit_bits: int = 0x207FFFFF
    window_blocks: int = 72
    finality_depth: int = 30
    rewards: tuple[tuple[int, int], ...] = ()

    def checked(self) -> "WorkParameters":
        """Returns the parameters unchanged.

        Raises ``InputError`` with ``BAD_GENESIS`` where a field is out of its range.
        """
        self._check_numbers()
        try:
            initial, limit = bits_to_target(self.initial_bits), bits_to_target(self.limit_bits)
        except ValueError:
            raise _bad_genesis("initial_bits and limit_bits are compact targets") from None
        if (target_to_bits(initial), target_to_bits(limit)) != (self.initial_bits, self.limit_bits):
            raise _bad_genesis("initial_bits and limit_bits are canonical compact targets")
        if initial > limit:
            raise _bad_genesis("initial_bits are an easier target than limit_bits")
        return self

    def _check_numbers(self) -> None:
        ranges = (
            ("spacing_ms", self.spacing_ms, 1, WORK_SPACING_MS_MAX),
            ("initial_bits", self.initial_bits, 1, 2**32 - 1),
            ("limit_bits", self.limit_bits, 1, 2**32 - 1),
            ("window_blocks", self.window_blocks, WORK_WINDOW_BLOCKS_MIN, WORK_WINDOW_BLOCKS_MAX),
            ("finality_depth", self.finality_depth, 1, FINALITY_DEPTH_MAX),
        )
        for name, value, low, high in ranges:
            if type(value) is not int or not low <= value <= high:
                raise _bad_genesis(f"{name} is a whole number from {low} to {high}")
        if len(self.rewards) > REWARD_STEPS_MAX:
            raise _bad_genesis(f"rewards have at most {REWARD_STEPS_MAX} steps")
        below = -1
        for height, credits in self.rewards:
            if type(height) is not int or not below < height < 2**63 or (below < 0 and height != 0):
                raise _bad_genesis("rewards ascend from height 0")
            if type(credits) is not int or not 0 <= credits <= REWARD_CREDITS_MAX:
                raise _bad_genesis(f"a reward is from 0 to {REWARD_CREDITS_MAX} credits")
            below = height

    def to_map(self) -> dict[str, Any]:
        """Returns the parameters as the map that stands in the genesis document."""
        return {
            "spacing_ms": self.spacing_ms,
            "initial_bits": self.initial_bits,
            "limit_bits": self.limit_bits,
            "window_blocks": self.window_blocks,
            "finality_depth": self.finality_depth,
            "rewards": [list(step) for step in self.rewards],
        }

    @classmethod
    def from_map(cls, value: Any) -> "WorkParameters":
        """Returns the parameters in a map of :meth:`to_map`; raises ``InputError`` with ``BAD_GENESIS``."""
        if not isinstance(value, dict) or set(value) != {field.name for field in fields(cls)}:
            raise _bad_genesis("work parameters have other fields")
        steps = _list(value["rewards"])
        if any(not isinstance(step, list) or len(step) != 2 for step in steps):
            raise _bad_genesis("rewards are pairs of a height and credits")
        return cls(**value | {"rewards": tuple((height, credits) for height, credits in steps)}).checked()


@dataclass(frozen=True)
class Genesis:
    """A genesis document. ``proposers`` are the 33-byte keys that may seal blocks; ``salt`` makes chains differ.

    ``rule_set`` is in force from block 0 on; another takes its place once ``activation_quorum`` of the authorities
    have voted for it (SPEC-RULE-5). Without authorities the quorum is 0, and the rule set stays for ever.
    """

    created_ms: int
    proposers: tuple[bytes, ...]
    authorities: tuple[Authority, ...] = ()
    engine: str = "solo"
    salt: bytes = b""
    work: WorkParameters | None = None
    rule_set: int = RULE_SET_FIRST
    activation_quorum: int = MAJORITY

    def __post_init__(self) -> None:
        """Puts the number of a majority in the place of :data:`MAJORITY`."""
        if self.activation_quorum == MAJORITY:
            count = len(self.authorities)
            object.__setattr__(self, "activation_quorum", count // 2 + 1 if count else 0)

    def __repr__(self) -> str:
        return f"<Genesis {self.engine} chain {self.chain_id.hex()}, {len(self.proposers)} proposers>"

    @classmethod
    def create(
        cls,
        *,
        created_ms: int,
        proposers: tuple[bytes, ...],
        authorities: tuple[Authority, ...] = (),
        engine: str = "solo",
        work: WorkParameters | None = None,
        rule_set: int | None = None,
        activation_quorum: int = MAJORITY,
    ) -> "Genesis":
        """Makes the document of a new chain, with a random salt.

        ``work`` goes with the ``pow`` engine and no other. ``rule_set`` is the newest that this release knows unless
        another is given, for a federation in which some members have an older release.
        """
        number = newest_rule_set() if rule_set is None else rule_set
        salt = os.urandom(16)
        return cls(
            created_ms, proposers, authorities, engine, salt, work, number, activation_quorum
        ).checked()

    def checked(self) -> "Genesis":
        """Returns the document unchanged.

        Raises ``InputError`` with ``BAD_GENESIS`` where a field has another shape.
        """
        if self.engine not in ENGINES:
            raise _bad_genesis(f"engine is one of {', '.join(ENGINES)}")
        if type(self.created_ms) is not int or not 0 <= self.created_ms < 1000 * 2**32:
            raise _bad_genesis("created_ms is a time in milliseconds whose seconds fit a header's 32 bits")
        if not self.proposers or any(len(key) != 33 for key in self.proposers):
            raise _bad_genesis("proposers are one or more 33-byte keys")
        for authority in self.authorities:
            if len(authority.key) != 33:
                raise _bad_genesis("an authority has a 33-byte key")
            try:
                public_key_suite(authority.kem)
            except EnvelopeError:
                raise _bad_genesis("an authority has a KEM public key") from None
        self._check_activation()
        if len({authority.key for authority in self.authorities}) != len(self.authorities):
            raise _bad_genesis("authorities differ from one another")
        if len(self.salt) != 16:
            raise _bad_genesis("salt has 16 bytes")
        if (self.work is not None) != (self.engine == "pow"):
            raise _bad_genesis("work parameters go with the pow engine, and with no other")
        if self.work is not None:
            self.work.checked()
        return self

    def _check_activation(self) -> None:
        if type(self.rule_set) is not int or not RULE_SET_FIRST <= self.rule_set <= RULE_SET_MAX:
            raise _bad_genesis(f"rule_set is a number from {RULE_SET_FIRST} to {RULE_SET_MAX}")
        count, quorum = len(self.authorities), self.activation_quorum
        if count > AUTHORITIES_MAX:
            raise _bad_genesis(f"authorities are at most {AUTHORITIES_MAX}")
        if type(quorum) is not int or not min(1, count) <= quorum <= count:
            raise _bad_genesis("activation_quorum is 1 to the number of authorities, 0 where there are none")

    @property
    def activation_notice_blocks(self) -> int:
        """How many blocks at least lie between the vote that decides an activation and its height (SPEC-RULE-6).

        They are more than the finality depth: the decision is final before it takes effect.
        """
        return ACTIVATION_NOTICE_BLOCKS_MIN + (self.work.finality_depth if self.work is not None else 0)

    @cached_property
    def encoded(self) -> bytes:
        """The document's bytes, as they are kept in ``genesis.cbor``."""
        document: dict[str, Any] = {
            "version": GENESIS_FORMAT_VERSION,
            "created_ms": self.created_ms,
            "engine": self.engine,
            "proposers": list(self.proposers),
            "authorities": [[authority.key, authority.kem] for authority in self.authorities],
            "salt": self.salt,
            "rule_set": self.rule_set,
            "activation_quorum": self.activation_quorum,
        }
        if self.work is not None:
            document["work"] = self.work.to_map()
        return encode(document)

    @classmethod
    def decode(cls, data: bytes) -> "Genesis":
        """Returns the document in ``data``; raises ``InputError`` with ``BAD_GENESIS`` or a codec error."""
        value = decode(data, what="genesis")
        version = value.get("version") if isinstance(value, dict) else None
        if type(version) is int and 0 < version < GENESIS_FORMAT_VERSION:
            raise FormatVersionError(
                f"a genesis document of format {version}: this release reads format {GENESIS_FORMAT_VERSION} alone"
            )
        if not isinstance(value, dict) or set(value) - {"work"} != _KEYS:
            raise _bad_genesis("a genesis document has other fields")
        if type(value["version"]) is not int or value["version"] != GENESIS_FORMAT_VERSION:
            raise _bad_genesis(f"not a genesis document of format {GENESIS_FORMAT_VERSION}")
        if value["activation_quorum"] == MAJORITY:
            raise _bad_genesis("activation_quorum stands in a document as a number")
        return cls(
            value["created_ms"],
            tuple(_byte_strings(value["proposers"])),
            tuple(Authority(*_byte_strings(pair, 2)) for pair in _list(value["authorities"])),
            str(value["engine"]),
            _byte_strings([value["salt"]])[0],
            WorkParameters.from_map(value["work"]) if "work" in value else None,
            value["rule_set"],
            value["activation_quorum"],
        ).checked()

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of the document's bytes."""
        return hashlib.sha256(self.encoded).digest()

    @property
    def chain_id(self) -> bytes:
        """The first 8 bytes of the digest."""
        return self.digest[:CHAIN_ID_BYTES]

    def block(self, state_root: bytes) -> Block:
        """Returns block 0: no transactions, no seal, no work; its ``seal_ref`` is the digest of this document.

        Under the ``pow`` engine it has the bits that block 1 must meet.
        """
        body = HeaderBody(
            height=0,
            time_ms=self.created_ms,
            tx_root=EMPTY_ROOT,
            result_root=EMPTY_ROOT,
            state_root=state_root,
            history_root=EMPTY_ROOT,
            proposer=self.proposers[0],
            seal_ref=self.digest,
        )
        bits = self.work.initial_bits if self.work is not None else 0
        header = Header(ZERO32, body.commitment, self.created_ms // 1000, bits)
        return Block(header, body, b"", b"", b"", b"")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _bad_genesis("expected an array")
    return value


def _byte_strings(value: Any, count: int | None = None) -> list[bytes]:
    items = _list(value)
    if not all(isinstance(item, bytes) for item in items) or (count is not None and len(items) != count):
        raise _bad_genesis("expected an array of byte strings")
    return items
