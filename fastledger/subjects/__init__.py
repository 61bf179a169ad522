"""The medical subjects, one module each: entities, kinds of transactions, rules, refusals, search terms.

Whoever writes a subject outside of this package has here, in one import, what a declaration is made of; the types of
fields are in :mod:`fastledger.model.fields`.
"""

from fastledger.model.body import Body
from fastledger.state.context import Context
from fastledger.state.entity import Entity
from fastledger.state.subject import Subject
from fastledger.state.view import Refusal

__all__ = ["Body", "Context", "Entity", "Refusal", "Subject"]
