"""The matching step: an operator says that two names are one person, and that he said so stays on record (SPEC-ING-8).

Nothing that a source says ever joins two people. Whoever decides has looked at both; who, when and what was decided is
sealed into the folder ``matching`` of the person, who can read it. The chain sees a record like any other, with random
ids and no word of either name.
"""

from collections.abc import Callable

import msgspec

from fastledger.client.api import LedgerApi
from fastledger.client.ingest.custodian import Custodian, Match
from fastledger.clock import system_clock_ms
from fastledger.errors import Code, InputError
from fastledger.gateway.fhir_references import restful
from fastledger.gateway.fhir_source import Identifier, Source
from fastledger.limits import MATCH_TEXT_CHARS_MAX, MATCHES_MAX

CATEGORY = "matching"
_TERMS = ("type:Match",)


def person_named(source: Source, reference: str) -> str:
    """The name of a Patient of a source, given as ``Patient/7`` or by its absolute URL.

    Raises ``InputError`` for any other form: a placeholder is worth something in its bundle alone.
    """
    parts = restful(reference)
    if parts is None or parts.resource_type != "Patient":
        raise InputError("a patient is named as Patient/<id> or by the URL of one", code=Code.MALFORMED)
    return source.scoped(f"{parts.base or source.base}/Patient/{parts.resource_id}")


def match_patient(
    ledger: LedgerApi,
    custodian: Custodian,
    *,
    name: tuple[Source, str],
    same_as: tuple[Source, str],
    by: str,
    save: Callable[[], None],
    clock_ms: Callable[[], int] = system_clock_ms,
) -> Match:
    """From now on what a source says of one of its Patients goes to the wallet of another name.

    ``name`` and ``same_as`` are (source, reference); ``by`` is who decided. What was ingested before stays where it
    is. ``save`` is called before anything is submitted, and once the match is durable. Naming the person itself as
    ``same_as`` takes an earlier match back. Raises ``InputError`` where the two are one already, or a text is too long.
    """
    source, reference = name
    what, person = person_named(source, reference), person_named(*same_as)
    return _match(ledger, custodian, source, what, person, by, save, clock_ms)


def match_identifier(
    ledger: LedgerApi,
    custodian: Custodian,
    *,
    source: Source,
    identifier: Identifier,
    same_as: tuple[Source, str],
    by: str,
    save: Callable[[], None],
    clock_ms: Callable[[], int] = system_clock_ms,
) -> Match:
    """From now on references of a source by this (system, value) lead to a person.

    Everything else is as with :func:`match_patient`.
    """
    person = person_named(*same_as)
    return _match(ledger, custodian, source, "|".join(identifier), person, by, save, clock_ms)


def _match(
    ledger: LedgerApi,
    custodian: Custodian,
    source: Source,
    what: str,
    person: str,
    by: str,
    save: Callable[[], None],
    clock_ms: Callable[[], int],
) -> Match:
    if not 1 <= len(by) <= MATCH_TEXT_CHARS_MAX or max(len(what), len(person)) > MATCH_TEXT_CHARS_MAX:
        raise InputError(
            f"who decided, and both names, have 1 to {MATCH_TEXT_CHARS_MAX} characters", code=Code.OVERSIZED
        )
    if len(custodian.matches) >= MATCHES_MAX:
        raise InputError(f"at most {MATCHES_MAX} matches are kept", code=Code.OVERSIZED)
    # A name that is matched itself stands for whom it is matched to; so there are no circles.
    person = person if person == what else custodian.known_as(person)
    if "|" not in what and custodian.known_as(what) == person:
        raise InputError("the two are one already", code=Code.BAD_BODY)
    time_ms = clock_ms()
    content = {"source": source.base, "what": what, "person": person, "by": by, "time_ms": time_ms}
    wallet, transactions = custodian.patient(person, [CATEGORY])
    sealed = custodian.organisation.put_record(
        wallet.labels[CATEGORY], msgspec.json.encode({"match": content}), _TERMS
    )
    save()
    for outcome in ledger.submit([*transactions, sealed.transaction], [sealed.blob]):
        outcome.raise_for_status()
    match = Match(source.base, what, person, by, time_ms, sealed.record)
    custodian.add_match(match)
    save()
    return match
