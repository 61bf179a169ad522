"""The transaction that a rule is judging: its place in time, its signer, and what it leaves besides state."""

from fastledger.errors import Code
from fastledger.model.bodies import Role
from fastledger.state.entities import IDENTITIES, KEYS, Identity
from fastledger.state.terms import SIGNER, unknown_signer_term
from fastledger.state.view import Refusal, View

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
# Roles that act for the organisation that endorsed them: what is granted to it is granted to them.
MEMBER_ROLES = frozenset({Role.PRACTITIONER, Role.DEVICE})


class Context:
    """One transaction under judgement; ``time_ms`` is the block's time, not the machine's."""

    __slots__ = ("chain_id", "erased", "signer", "terms", "time_ms", "view")

    def __init__(self, view: View, chain_id: bytes, signer: bytes, time_ms: int) -> None:
        self.view = view
        self.chain_id = chain_id
        self.signer = signer
        self.time_ms = time_ms
        self.terms: list[bytes] = []
        self.erased: list[bytes] = []

    def find_by(self, table: bytes, name: bytes) -> None:
        """Lets the transaction be found under a 16-byte name in a table, also when it is refused."""
        self.terms.append(table + name)

    def actor(self) -> tuple[bytes, Identity]:
        """The signer's id and identity; refuses the unknown and the revoked."""
        pseudonym = self.view.load(KEYS, self.signer)
        if pseudonym is None:
            self.terms.append(unknown_signer_term(self.signer))
            raise Refusal(Code.UNKNOWN_SIGNER)
        self.terms.append(SIGNER + pseudonym.identity)
        identity = self.view.load(IDENTITIES, pseudonym.identity)
        if identity is None:
            raise Refusal(Code.UNKNOWN_SIGNER)
        if identity.revoked:
            raise Refusal(Code.SIGNER_REVOKED)
        return pseudonym.identity, identity

    def in_role(self, identity: Identity) -> bool:
        """Whether the identity's role is vouched for at this time, by someone not revoked since (SPEC-ID-6)."""
        if identity.role == Role.PATIENT:
            return True
        if identity.endorsed_until_ms <= self.time_ms:
            return False
        endorser = self.view.load(IDENTITIES, identity.endorser)
        return endorser is None or not endorser.revoked

    def grantees(self, actor_id: bytes, actor: Identity) -> tuple[bytes, ...]:
        """The ids whose consents the actor may use: its own and, for a member, its organisation's."""
        if actor.role in MEMBER_ROLES:
            return (actor_id, actor.endorser)
        return (actor_id,)
