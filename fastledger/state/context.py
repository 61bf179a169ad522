"""What a rule judges by: the block's place in time, the transaction's signer, and what both leave besides state."""

from fastledger.errors import Code
from fastledger.model.bodies import Role
from fastledger.state.entities import IDENTITIES, KEYS, Identity
from fastledger.state.terms import SIGNER, unknown_signer_name
from fastledger.state.view import Refusal, TermList, View

# Whose endorsement gives a role. A patient needs none: the role gives power over the patient's own folders only.
ENDORSERS: dict[Role, tuple[Role, ...]] = {
    Role.PATIENT: (Role.ORGANISATION, Role.PRACTITIONER),
    Role.PRACTITIONER: (Role.ORGANISATION, Role.PHARMACY),
    Role.DEVICE: (Role.ORGANISATION, Role.MANUFACTURER),
    Role.ORGANISATION: (Role.REGULATOR,),
    Role.AUDITOR: (Role.REGULATOR,),
    Role.REGULATOR: (Role.REGULATOR,),
    Role.INSURER: (Role.REGULATOR,),
    Role.MANUFACTURER: (Role.REGULATOR,),
    Role.PHARMACY: (Role.REGULATOR,),
}
# Members of an enum cost a call each time they are looked up.
_PATIENT = Role.PATIENT
# Roles that act for the organisation that endorsed them: what is granted to it is granted to them.
_PRACTITIONER, _DEVICE = Role.PRACTITIONER, Role.DEVICE


class Context:
    """A run of transactions under judgement, one at a time; ``time_ms`` is the block's time, not the machine's.

    ``signer`` signed the present one. ``terms`` and ``erased`` gather what all of them left.
    """

    __slots__ = ("chain_id", "erased", "find_by", "signer", "terms", "time_ms", "view")

    def __init__(self, view: View, chain_id: bytes, time_ms: int) -> None:
        self.view = view
        self.chain_id = chain_id
        self.signer = b""
        self.time_ms = time_ms
        self.terms = TermList()
        self.erased: list[bytes] = []
        # Lets the transaction be found under a 16-byte name in a table, also when it is refused.
        self.find_by = self.terms.add

    def copy(self, view: View) -> "Context":
        """One that goes on from here on its own, with ``view``."""
        other = Context(view, self.chain_id, self.time_ms)
        other.terms = self.terms.copy()
        other.find_by = other.terms.add
        other.erased = list(self.erased)
        return other

    def actor(self) -> tuple[bytes, Identity]:
        """The signer's id and identity; refuses the unknown and the revoked."""
        pseudonym = self.view.load(KEYS, self.signer)
        if pseudonym is None:
            self.find_by(SIGNER, unknown_signer_name(self.signer))
            raise Refusal(Code.UNKNOWN_SIGNER)
        actor_id = pseudonym.identity
        self.find_by(SIGNER, actor_id)
        identity = self.view.load(IDENTITIES, actor_id)
        if identity is None:
            raise Refusal(Code.UNKNOWN_SIGNER)
        if identity.revoked:
            raise Refusal(Code.SIGNER_REVOKED)
        return actor_id, identity

    def in_role(self, identity: Identity) -> bool:
        """Whether the identity's role is vouched for at this time, by someone not revoked since (SPEC-ID-6)."""
        if identity.role is _PATIENT:
            return True
        if identity.endorsed_until_ms <= self.time_ms:
            return False
        endorser = self.view.load(IDENTITIES, identity.endorser)
        return endorser is None or not endorser.revoked

    def grantees(self, actor_id: bytes, actor: Identity) -> tuple[bytes, ...]:
        """The ids whose consents the actor may use: its own and, for a member, its organisation's."""
        role = actor.role
        if role is _PRACTITIONER or role is _DEVICE:
            return (actor_id, actor.endorser)
        return (actor_id,)
