"""Entities by key and in lists, from an open ledger."""

import pytest
from world import World, new_wallet

from fastledger import Code, Purpose, Role
from fastledger.errors import InputError, NotFoundError
from fastledger.subjects.consent import CONSENTS
from fastledger.subjects.folder import FOLDERS
from fastledger.subjects.identity import IDENTITIES, KEM_KEYS
from fastledger.subjects.record import RECORDS


def test_entities_are_found_by_key(world: World) -> None:
    folder = world.patient.labels["vitals"]
    assert world.ledger.entity(FOLDERS, folder).owner == world.patient.identity
    with pytest.raises(NotFoundError):
        world.ledger.entity(FOLDERS, bytes(16))
    for key in ((), (b"short",), (folder, folder), (7,)):
        with pytest.raises(InputError) as caught:
            world.ledger.entity(FOLDERS, *key)
        assert caught.value.code is Code.BAD_QUERY


def test_a_list_holds_each_entity_once(world: World) -> None:  # SPEC-QRY-5
    grants = [world.grant(wallet, "vitals") for wallet in (world.doctor, world.clinic)]
    ids = [grant.body_map["consent"] for grant in grants]
    # A stranger who names the consent first, and a revocation later, change neither place nor number.
    world.submit(world.patient.revoke_consent(ids[0]))
    listed = world.ledger.entities(CONSENTS, by={"owner": world.patient.identity})
    assert [item.key for item in listed.items] == [(consent,) for consent in ids]
    assert [item.entity.revoked for item in listed.items] == [True, False]
    assert listed.next_cursor is None
    both = {"owner": world.patient.identity, "grantee": world.clinic.identity}
    assert [item.key for item in world.ledger.entities(CONSENTS, by=both).items] == [(ids[1],)]
    assert world.ledger.entities(CONSENTS, by={"owner": world.clinic.identity}).items == []


def test_who_named_it_first_and_was_refused_hides_nothing(world: World) -> None:  # SPEC-QRY-5
    consent = bytes(range(16))
    stranger = new_wallet(world.clock).join(world.ledger.chain_id)
    assert not world.ledger.submit([stranger.revoke_consent(consent)])[0].ok
    world.grant(world.doctor, "vitals", consent=consent)
    by = {"owner": world.patient.identity}
    assert [item.key for item in world.ledger.entities(CONSENTS, by=by).items] == [(consent,)]
    assert [item.key for item in world.ledger.entities(CONSENTS).items] == [(consent,)]


def test_lists_come_in_pages(world: World) -> None:
    sealed = [world.put(b"%d" % number) for number in range(5)]
    by = {"folder": world.patient.labels["vitals"]}
    found, cursor = [], None
    for _ in range(5):
        page = world.ledger.entities(RECORDS, by=by, cursor=cursor, limit=2)
        found += [item.key[0] for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == [each.record for each in sealed]


def test_lists_that_there_are_not(world: World) -> None:
    for table, by in (
        (KEM_KEYS, {}),
        (CONSENTS, {"rights": bytes(16)}),
        (CONSENTS, {"owner": b"short"}),
        (CONSENTS, {"zebra": bytes(16)}),
    ):
        with pytest.raises(InputError) as caught:
            world.ledger.entities(table, by=by)  # type: ignore[arg-type]
        assert caught.value.code is Code.BAD_QUERY
    for limit in (0, -1, 10**6):
        with pytest.raises(InputError):
            world.ledger.entities(CONSENTS, limit=limit)


def test_identities_are_listed_by_who_endorsed_them(world: World) -> None:
    by = {"endorser": world.regulator.identity}
    found = world.ledger.entities(IDENTITIES, by=by)
    assert {item.key[0] for item in found.items} == {
        world.hospital.identity,
        world.clinic.identity,
    }
    assert {item.entity.role for item in found.items} == {Role.ORGANISATION}
    assert Purpose.TREATMENT
