"""What a debugger shows of a value: ids that can be compared, never keys or content, in one line."""

import re
from pathlib import Path

import pytest
from world import TERM, VITALS, World, make_world

from fastledger import Code, Outcome, Query, Wallet
from fastledger.crypto.folders import FolderKey
from fastledger.model.reports import SnapshotReport
from fastledger.reprs import brief, short_hex
from fastledger.subjects.consent import CONSENTS
from fastledger.subjects.identity import IDENTITIES
from fastledger.subjects.record import RECORDS

LINE_CHARS_MAX = 400


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("reprs") / "ledger")


def samples(world: World) -> list[object]:
    ledger, chain_id = world.ledger, world.ledger.chain_id
    sealed = world.put()
    grant = world.grant(world.doctor)
    page = ledger.query()
    transactions = [entry.transaction for entry in page]
    block = ledger.block(ledger.height)
    return [
        *transactions,
        *(transaction.body for transaction in transactions),
        *page,
        page,
        *ledger.submit([world.hospital.revoke_identity(bytes(16)), sealed.transaction, b"garbage"]),
        Query(ids={"record": sealed.record}, token=bytes(16), code=Code.OK),
        block,
        block.header,
        block.body,
        block.sealed_header,
        ledger.genesis,
        *ledger.genesis.authorities,
        *ledger.entities(IDENTITIES).items,
        ledger.entities(CONSENTS, by={"grantee": world.doctor.identity}),
        ledger.entity(CONSENTS, grant.body.consent),
        ledger.entity(RECORDS, sealed.record),
        ledger.record_version(sealed.record),
        sealed,
        world.patient,
        Wallet.create(),
        world.patient.folder_key("vitals"),
        ledger,
        SnapshotReport(chain_id, 7, bytes(32), bytes(32), bytes(32), 1, 2),
    ]


def test_every_value_has_a_short_repr_without_bytes(world: World) -> None:
    for value in samples(world):
        shown = repr(value)
        assert len(shown) <= LINE_CHARS_MAX, shown
        assert "\n" not in shown
        assert not re.search(r"\bb['\"]|\\x|bytearray|object at 0x", shown), shown


def test_no_repr_has_keys_content_labels_or_terms(world: World) -> None:  # SPEC-PRIV-2
    shown = " ".join(map(repr, samples(world)))
    key = world.patient.folder_key("vitals")
    for wallet in world.wallets:
        assert wallet._key.secret_bytes().hex()[:16] not in shown
        assert wallet._kem.to_bytes()[3:].hex()[:16] not in shown
    assert key.key.hex()[:8] not in shown
    assert VITALS.decode() not in shown
    assert "heart rate" not in shown
    assert TERM not in shown
    assert "vitals" not in shown


def test_what_a_repr_says() -> None:
    txid = bytes.fromhex("a1b2c3d4") + bytes(28)
    assert repr(Outcome(txid, Code.OK, 5, 0)) == "<Outcome durable a1b2c3d4… at 5/0>"
    assert repr(Outcome(txid, Code.EXPIRED)) == "<Outcome rejected expired a1b2c3d4…>"
    assert repr(Outcome(txid, Code.OK, 5, 0, duplicate=True)).endswith(" duplicate>")
    assert repr(Query(limit=5, signed_by=txid[:16])) == "Query(signed_by=a1b2c3d4…, limit=5)"
    assert repr(FolderKey(txid[:16], 3, bytes(32))) == "FolderKey(folder=a1b2c3d4…, epoch=3)"


def test_ids_are_cut_and_long_bytes_counted() -> None:
    assert [short_hex(bytes(size)) for size in (0, 8, 9, 33, 34)] == [
        "",
        "00" * 8,
        "00000000…",
        "00000000…",
        "<34 bytes>",
    ]
    assert brief([1, 2, 3, 4, 5, 6]) == "[1, 2, 3, 4, … 2 more]"
    assert brief({"record": bytes(16)}) == "{record: 00000000…}"


def test_an_open_ledger_says_where_it_stands(tmp_path: Path) -> None:
    world = make_world(tmp_path / "ledger", settled=False)
    shown = repr(world.ledger)
    assert world.ledger.chain_id.hex() in shown
    assert f"height {world.ledger.height}" in shown
    world.close()
    assert "closed" in repr(world.ledger)
