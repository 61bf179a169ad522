"""The wire over real sockets: every method, the binary endpoint, roles, limits and what an error looks like."""

import asyncio
import base64
import hashlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from node_world import NodeWorld, RawClient, RpcFailure, raw_client, serve_world
from world import VITALS, World, new_wallet

from fastledger import Code, Genesis, Purpose, Role, Transaction, verify_statement
from fastledger.crypto.signing import LOW_S_MAX, ORDER
from fastledger.errors import InputError, LedgerBusyError
from fastledger.rpc.options import AccessOptions, RpcOptions
from fastledger.rpc.protocol import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    decode_blobs,
    decode_outcomes,
    encode_blobs,
)
from fastledger.rpc.server import Extras
from fastledger.rpc.signatures import low_s, low_s_sequence
from fastledger.subjects.identity import KEM_KEYS, UNKNOWN_SIGNER

SEQUENCE = "application/cbor-seq"
ALL_ROLES = AccessOptions(anonymous_roles=frozenset({"reader", "submitter", "operator"}))


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeWorld]:
    async with serve_world(tmp_path / "ledger") as made:
        yield made


@pytest_asyncio.fixture
async def client(node: NodeWorld) -> AsyncIterator[RawClient]:
    async with raw_client(node.url) as made:
        yield made


def registrations(world: World, count: int) -> list[Transaction]:
    return [new_wallet(world.clock).join(world.ledger.chain_id).register(Role.PATIENT) for _ in range(count)]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def failure(client: RawClient, method: str, **params: Any) -> RpcFailure:
    with pytest.raises(RpcFailure) as caught:
        await client.call(method, **params)
    return caught.value


# The ledger and its transactions.


async def test_info_is_all_that_a_client_needs(node: NodeWorld, client: RawClient) -> None:
    info = await client.call("ledger.info")
    ledger = node.world.ledger
    assert Genesis.decode(base64.b64decode(info["genesis"])).chain_id == ledger.chain_id
    assert (info["protocol"], info["engine"], info["height"]) == (1, "solo", ledger.height)
    assert (info["head"], info["transactions"]) == (ledger.head.hex(), ledger.transaction_count)
    status = await client.call("ledger.status")
    assert (status["state"], status["height"], status["pending_transactions"]) == ("ready", ledger.height, 0)


async def test_a_transaction_is_submitted_found_and_proved(node: NodeWorld, client: RawClient) -> None:
    (transaction,) = registrations(node.world, 1)
    txid = transaction.txid.hex()
    assert (await client.call("transaction.status", txid=txid))["status"] == "unknown"
    verdict = await client.call("transaction.submit", transaction=text(transaction.encoded))
    assert (verdict["txid"], verdict["status"], verdict["code"]) == (txid, "durable", 0)
    again = await client.call("transaction.submit", transaction=text(transaction.encoded))
    assert (again["status"], again["height"], again["duplicate"]) == ("durable", verdict["height"], True)
    entry = await client.call("transaction.get", txid=txid)
    assert base64.b64decode(entry["transaction"]) == transaction.encoded
    assert (entry["height"], entry["kind"], entry["reason"]) == (verdict["height"], "identity.register", "ok")
    status = await client.call("transaction.status", txid=txid)
    assert (status["status"], status["height"], status["code"]) == ("durable", verdict["height"], 0)
    proof = await client.call("transaction.prove", txid=txid)
    genesis = node.world.ledger.genesis
    verified = verify_statement(
        base64.b64decode(proof["statement"]), chain_id=genesis.chain_id, proposers=genesis.proposers
    )
    assert verified.transaction.txid == transaction.txid


async def test_three_words_for_how_far_to_wait(node: NodeWorld, client: RawClient) -> None:  # SPEC-NODE-3
    first, second, third = registrations(node.world, 3)
    accepted = await client.call("transaction.submit", transaction=text(first.encoded), wait="accepted")
    assert accepted["status"] == "accepted"
    assert (await client.call("transaction.status", txid=first.txid.hex()))["status"] in (
        "pending",
        "durable",
    )
    ordered = await client.call("transaction.submit", transaction=text(second.encoded), wait="ordered")
    assert (ordered["status"], ordered["code"]) == ("ordered", 0)
    assert ordered["height"] is not None
    answer = await client.call(
        "transaction.submit_batch", transactions=[text(third.encoded), text(b"junk")], wait="durable"
    )
    assert [verdict["status"] for verdict in answer["verdicts"]] == ["durable", "rejected"]
    assert answer["verdicts"][1]["reason"] == "malformed"


async def test_refusals_stand_in_the_chain_and_are_found(node: NodeWorld, client: RawClient) -> None:
    world = node.world
    stranger = new_wallet(world.clock).join(world.ledger.chain_id)
    refused = stranger.open_folders("vitals")
    verdict = await client.call("transaction.submit", transaction=text(refused.encoded))
    assert (verdict["status"], verdict["code"]) == ("refused", UNKNOWN_SIGNER)
    assert (await client.call("transaction.status", txid=refused.txid.hex()))["status"] == "refused"
    for conditions in ({"status": "refused"}, {"code": int(UNKNOWN_SIGNER)}, {"alerts": True}):
        page = await client.call("transaction.query", **conditions)
        assert [entry["txid"] for entry in page["entries"]] == [refused.txid.hex()], conditions
    page = await client.call("transaction.query", status="durable")
    assert len(page["entries"]) == world.ledger.transaction_count - 1


async def test_queries_page_by_every_condition(node: NodeWorld, client: RawClient) -> None:  # SPEC-QRY-1
    world = node.world
    sealed = [await asyncio.to_thread(world.put) for _ in range(3)]
    patient = world.patient.identity.hex()
    found: list[str] = []
    cursor = None
    while True:
        page = await client.call(
            "transaction.query", signed_by=patient, kind="record.put", limit=2, cursor=cursor
        )
        found += [entry["txid"] for entry in page["entries"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == [record.transaction.txid.hex() for record in sealed]
    body = sealed[0].transaction.body_map
    token, record = body["tokens"][0].hex(), body["record"].hex()
    assert len((await client.call("transaction.query", token=token))["entries"]) == 3
    assert len((await client.call("transaction.query", ids={"record": record}))["entries"]) == 1
    assert len((await client.call("transaction.query", ids={"folder": body["folder"].hex()}))["entries"]) >= 3
    height = world.ledger.height
    newest = await client.call("transaction.query", from_height=height, newest_first=True)
    assert [entry["height"] for entry in newest["entries"]] == [height]
    time_ms = newest["entries"][0]["time_ms"]
    late = await client.call("transaction.query", from_time_ms=time_ms, to_time_ms=time_ms)
    assert late["entries"] == newest["entries"]
    assert (await failure(client, "transaction.query", kind="no.such")).code == Code.BAD_QUERY
    assert (await failure(client, "transaction.query", code=999)).code == Code.BAD_QUERY
    assert (await failure(client, "transaction.query", status="durable", code=200)).code == Code.BAD_QUERY
    assert (await failure(client, "transaction.query", status="refused", code=0)).code == Code.BAD_QUERY


async def test_long_pages_are_cut_and_join(tmp_path: Path) -> None:
    async with (
        serve_world(tmp_path / "ledger", options=RpcOptions(page_bytes_max=600)) as node,
        raw_client(node.url) as client,
    ):
        seen: list[int] = []
        cursor = None
        while True:
            page = await client.call("transaction.query", cursor=cursor, newest_first=True)
            assert 1 <= len(page["entries"]) <= 3
            seen += [entry["seq"] for entry in page["entries"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == list(reversed(range(node.world.ledger.transaction_count)))
        index, listed = 0, 0
        while index is not None:
            part = await client.call("block.transactions", height=1, index=index)
            listed += len(part["entries"])
            index = part["next_index"]
        assert listed == node.world.ledger.block(1).count


async def test_blocks(node: NodeWorld, client: RawClient) -> None:
    world = node.world
    block = await client.call("block.get")
    assert (block["height"], block["block_id"]) == (world.ledger.height, world.ledger.head.hex())
    header = await client.call("block.header", height=1)
    raw = base64.b64decode(header["header"])
    assert hashlib.sha256(hashlib.sha256(raw).digest()).hexdigest() == header["block_id"]
    assert hashlib.sha256(base64.b64decode(header["body"])).digest() == raw[36:68]
    part = await client.call("block.transactions", height=1, index=1, limit=2)
    expected = [world.ledger.block(1).transaction_bytes(index) for index in (1, 2)]
    assert [base64.b64decode(entry["transaction"]) for entry in part["entries"]] == expected
    assert [entry["seq"] for entry in part["entries"]] == [1, 2]
    assert part["next_index"] == 3
    assert (await failure(client, "block.get", height=10_000)).code == Code.NOT_FOUND


async def test_the_present_state(node: NodeWorld, client: RawClient) -> None:
    world = node.world
    sealed = await asyncio.to_thread(world.put)
    grant = await asyncio.to_thread(world.grant, world.doctor, "vitals", purposes=[Purpose.TREATMENT])
    record, folder = sealed.transaction.body_map["record"].hex(), sealed.transaction.body_map["folder"].hex()
    doctor, patient = world.doctor.identity.hex(), world.patient.identity.hex()
    identity = await client.call("identity.get", identity=doctor)
    assert (identity["role"], identity["endorser"], identity["revoked"]) == (
        "practitioner",
        world.hospital.identity.hex(),
        False,
    )
    assert (await client.call("signing_key.get", key=identity["key"]))["identity"] == doctor
    kem = await client.call("kem_key.get", identity=doctor)
    assert base64.b64decode(kem["kem"]) == world.ledger.entity(KEM_KEYS, world.doctor.identity).kem
    assert await client.call("folder.get", folder=folder) == {"folder": folder, "owner": patient, "epoch": 1}
    found = await client.call("record.get", record=record)
    assert (found["folder"], found["version"], found["erased"]) == (folder, 1, False)
    assert found["present"]["digest"] == hashlib.sha256(sealed.blob).hexdigest()
    assert (await failure(client, "record_version.get", record=record, version=1)).code == Code.NOT_FOUND
    consent = await client.call("consent.get", consent=grant.body_map["consent"].hex())
    assert (consent["owner"], consent["grantee"], consent["folders"]) == (patient, doctor, [folder])
    assert (consent["purposes"], consent["rights"], consent["revoked"]) == (["TREAT"], ["read"], False)
    error = await failure(client, "consent.get", consent="00" * 16)
    assert (error.code, error.error["data"]["reason"]) == (Code.NOT_FOUND, "not-found")


async def test_envelopes_go_ahead_of_their_records(node: NodeWorld, client: RawClient) -> None:
    world = node.world
    sealed = world.patient.put_record("vitals", VITALS, ())
    digest = hashlib.sha256(sealed.blob).hexdigest()
    early = await client.call("transaction.submit", transaction=text(sealed.transaction.encoded))
    assert (early["status"], early["reason"]) == ("rejected", "blob-missing")
    assert (await client.call("blob.missing", digests=[digest]))["missing"] == [digest]
    status, body = await client.post("/v1/blobs", b"".join(encode_blobs([sealed.blob])), SEQUENCE)
    assert (status, msgspec.json.decode(body)) == (200, {"digests": [digest]})
    assert (await client.call("blob.missing", digests=[digest]))["missing"] == []
    late = await client.call("transaction.submit", transaction=text(sealed.transaction.encoded))
    assert late["status"] == "durable"
    status, body = await client.post("/v1/blobs", b"\x42\x00", SEQUENCE)
    assert (status, msgspec.json.decode(body)["error"]["code"]) == (400, Code.MALFORMED)


def test_byte_strings_of_every_length_are_read_back() -> None:
    blobs = [bytes(size) for size in (0, 1, 23, 24, 255, 256, 65_535, 65_536)]
    encoded = b"".join(encode_blobs(blobs))
    assert decode_blobs(encoded, count_max=8) == blobs
    with pytest.raises(InputError, match="more than 7"):
        decode_blobs(encoded, count_max=7)
    for broken in (
        b"\x60",
        b"\x41",
        b"\x58",
        b"\x58\x02a",
        b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x40\x01",
    ):
        with pytest.raises(InputError, match="no byte string at byte"):
            decode_blobs(broken, count_max=9)


# The binary endpoint.


async def test_a_batch_goes_in_and_its_verdicts_come_out(
    node: NodeWorld, client: RawClient
) -> None:  # SPEC-RPC-4
    transactions = registrations(node.world, 50)
    broken = bytearray(transactions[7].encoded)
    broken[-1] ^= 1
    encoded = [tx.encoded for tx in transactions]
    encoded[7] = bytes(broken)
    status, body = await client.post("/v1/transactions?wait=durable", b"".join(encoded), SEQUENCE)
    assert status == 200
    wait, outcomes = decode_outcomes(body, [tx.txid for tx in transactions])
    assert wait == "durable"
    assert [outcome.code for outcome in outcomes if not outcome.ok] == [Code.BAD_SIGNATURE]
    for outcome in outcomes:
        if outcome.ok:
            assert node.world.ledger.get(outcome.txid).height == outcome.height


async def test_a_broken_sequence_takes_nothing(node: NodeWorld, client: RawClient) -> None:
    (transaction,) = registrations(node.world, 1)
    height = node.world.ledger.height
    status, body = await client.post("/v1/transactions", transaction.encoded + b"\xff\xff", SEQUENCE)
    error = msgspec.json.decode(body)["error"]
    assert (status, error["code"]) == (400, Code.MALFORMED)
    assert str(len(transaction.encoded)) in error["message"]
    assert node.world.ledger.height == height
    assert (await client.post("/v1/transactions?wait=now", b"", SEQUENCE))[0] == 400
    status, body = await client.post("/v1/transactions?wait=accepted", b"", SEQUENCE)
    assert (status, decode_outcomes(body, [])) == (200, ("accepted", []))


def high_s(encoded: bytes) -> bytes:
    s = int.from_bytes(encoded[-32:], "big")
    assert s <= LOW_S_MAX
    return encoded[:-32] + (ORDER - s).to_bytes(32, "big")


async def test_foreign_signatures_are_brought_to_low_s(
    node: NodeWorld, client: RawClient
) -> None:  # SPEC-RPC-8
    first, second, third, fourth = registrations(node.world, 4)
    verdict = await client.call("transaction.submit", transaction=text(high_s(first.encoded)))
    assert (verdict["status"], verdict["txid"]) == ("durable", first.txid.hex())
    assert node.world.ledger.get(first.txid).encoded == first.encoded
    answer = await client.call("transaction.submit_batch", transactions=[text(high_s(second.encoded))])
    assert answer["verdicts"][0]["status"] == "durable"
    sequence = third.encoded + high_s(fourth.encoded)
    status, body = await client.post("/v1/transactions", sequence, SEQUENCE)
    assert (status, [item.ok for item in decode_outcomes(body, [b"", b""])[1]]) == (200, [True, True])
    assert low_s_sequence(sequence) == (third.encoded + fourth.encoded, 2)
    assert low_s_sequence(third.encoded) == (third.encoded, 1)
    for odd in (b"", b"\xff" * 65, b"\xff" * 100, first.encoded[:-64] + b"\xff" * 64):
        assert low_s(odd) == odd


# JSON-RPC 2.0.


NO_REQUESTS = (
    (b"", PARSE_ERROR),
    (b"{", PARSE_ERROR),
    (b"nonsense", PARSE_ERROR),
    (b'{"jsonrpc":"2.0","id":NaN,"method":"ledger.info"}', PARSE_ERROR),
    (b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}', PARSE_ERROR),
    (b"[" * 100_000, PARSE_ERROR),
    (b'{"jsonrpc":"2.0","id":1,"method":"ledger.info","params":' + b"[" * 100_000, PARSE_ERROR),
    (b"1", INVALID_REQUEST),
    (b"[]", INVALID_REQUEST),
    (b'{"jsonrpc":"1.0","id":1,"method":"ledger.info"}', INVALID_REQUEST),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ledger.info"}', INVALID_REQUEST),
    (b'{"jsonrpc":"2.0","id":1}', INVALID_REQUEST),
    (b'{"jsonrpc":"2.0","id":1,"id":1,"method":"ledger.info"}', INVALID_REQUEST),
    (b'{"jsonrpc":"2.0","id":1,"method":"ledger.info","params":{"a":1,"a":1}}', INVALID_PARAMS),
    (b'{"jsonrpc":"2.0","id":1,"method":"block.get","params":{"height":0,"height":1}}', INVALID_REQUEST),
    (
        b'{"jsonrpc":"2.0","id":1,"method":"block.get","params":{"height":0,"\\u0068eight":1}}',
        INVALID_REQUEST,
    ),
    (b'{"jsonrpc":"2.0","id":1,"method":"no.such"}', METHOD_NOT_FOUND),
    (b'{"jsonrpc":"2.0","id":1,"method":"block.get","params":[1]}', INVALID_PARAMS),
    (b'{"jsonrpc":"2.0","id":1,"method":"block.get","params":{"hight":1}}', INVALID_PARAMS),
    (b'{"jsonrpc":"2.0","id":1,"method":"block.get","params":{"height":-1}}', INVALID_PARAMS),
    (b'{"jsonrpc":"2.0","id":1,"method":"transaction.get"}', INVALID_PARAMS),
)


async def test_what_is_no_request_gets_its_own_code(client: RawClient) -> None:  # SPEC-RPC-1
    for body, code in NO_REQUESTS:
        _, answer = await client.post("/v1/rpc", body)
        assert msgspec.json.decode(answer)["error"]["code"] == code, body[:80]


async def test_parameters_that_do_not_fit_say_where_and_never_what(client: RawClient) -> None:  # SPEC-RPC-5
    error = await failure(client, "transaction.get", txid="secret")
    assert (error.code, error.error["data"]["path"]) == (INVALID_PARAMS, "$.txid")
    error = await failure(client, "transaction.query", diagnosis="secret")
    assert error.code == INVALID_PARAMS
    assert "secret" not in str(error.error)
    assert "diagnosis" not in str(error.error)


async def test_batches_and_notifications(node: NodeWorld, client: RawClient) -> None:  # SPEC-RPC-1
    calls = [
        {"jsonrpc": "2.0", "id": "a", "method": "block.get"},
        {"jsonrpc": "2.0", "method": "block.get"},
        {"jsonrpc": "2.0", "id": 7, "method": "no.such"},
        17,
    ]
    status, body = await client.post("/v1/rpc", msgspec.json.encode(calls))
    answers = msgspec.json.decode(body)
    assert status == 200
    assert [answer["id"] for answer in answers] == ["a", 7, None]
    assert answers[0]["result"]["height"] == node.world.ledger.height
    assert [answer["error"]["code"] for answer in answers[1:]] == [METHOD_NOT_FOUND, INVALID_REQUEST]
    for silent in (calls[1], [calls[1], calls[1]], {"jsonrpc": "2.0", "method": "no.such"}):
        assert await client.post("/v1/rpc", msgspec.json.encode(silent)) == (204, b"")
    status, body = await client.post("/v1/rpc", msgspec.json.encode(calls[:1] * 101))
    assert (status, msgspec.json.decode(body)["error"]["code"]) == (400, INVALID_REQUEST)
    heavy = {"jsonrpc": "2.0", "id": 1, "method": "transaction.query"}
    assert (await client.post("/v1/rpc", msgspec.json.encode([heavy] * 4)))[0] == 200
    assert (await client.post("/v1/rpc", msgspec.json.encode([heavy] * 5)))[0] == 400


async def test_a_page_of_another_site_cannot_call(node: NodeWorld, client: RawClient) -> None:
    request = b'{"jsonrpc":"2.0","id":1,"method":"ledger.info"}'
    assert (await client.post("/v1/rpc", request, "text/plain"))[0] == 415
    assert (await client.post("/v1/rpc", request, "application/json; charset=utf-8"))[0] == 200
    assert (await client.post("/v1/transactions", b"", "application/json"))[0] == 415
    headers = {"Origin": "https://elsewhere.example"}
    async with client.session.get(f"{node.url}/v1/subscribe", headers=headers) as response:
        assert response.status == 403


async def test_what_nobody_expected_is_an_incident(
    node: NodeWorld, client: RawClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # SPEC-RPC-5
    def fail(_: bytes) -> None:
        raise RuntimeError("patient Smith")

    monkeypatch.setattr(node.world.ledger, "get", fail)
    with caplog.at_level(logging.ERROR, logger="fastledger.rpc"):
        error = await failure(client, "transaction.get", txid="00" * 32)
    assert error.code == INTERNAL_ERROR
    incident = error.error["data"]["incident"]
    assert incident in error.error["message"]
    (record,) = caplog.records
    assert incident in record.getMessage()
    assert "RuntimeError" in record.getMessage()
    assert "Smith" not in record.getMessage() + str(error.error)


# HTTP around it.


async def test_health_descriptions_and_wrong_paths(node: NodeWorld, client: RawClient) -> None:
    assert await client.get("/health/live") == (200, b'{"status":"live"}')
    assert await client.get("/health/ready") == (200, b'{"status":"ready"}')
    assert (await client.get("/metrics"))[0] == 404
    assert (await client.get("/v1/nothing"))[0] == 404
    async with client.session.get(f"{node.url}/v1/rpc") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert response.headers["FastLedger-Protocol"] == "1"
    assert (await client.get("/v1/subscribe"))[0] == 426
    async with client.session.get(
        f"{node.url}/health/live", headers={"FastLedger-Protocol": "9"}
    ) as response:
        assert response.status == 400
    async with client.session.head(f"{node.url}/health/live") as response:
        assert response.status == 405


async def test_metrics_are_those_of_the_node(tmp_path: Path) -> None:
    extras = Extras(render_metrics=lambda: b"fastledger_height 1\n")
    async with serve_world(tmp_path / "ledger", extras=extras) as node, raw_client(node.url) as client:
        assert await client.get("/metrics") == (200, b"fastledger_height 1\n")


async def test_expect_100_continue_is_answered(node: NodeWorld, client: RawClient) -> None:
    transactions = registrations(node.world, 3)
    async with client.session.post(
        f"{node.url}/v1/transactions",
        data=b"".join(tx.encoded for tx in transactions),
        headers={"Content-Type": SEQUENCE},
        expect100=True,
    ) as response:
        assert response.status == 200


async def test_a_busy_node_says_when_to_come_again(
    node: NodeWorld, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-NODE-2
    async def busy(*_: Any, **__: Any) -> None:
        raise LedgerBusyError("full", retry_after_ms=1_500)

    monkeypatch.setattr(node.service.ingest, "submit_sequence", busy)
    monkeypatch.setattr(node.service.ingest, "submit", busy)
    (transaction,) = registrations(node.world, 1)
    headers = {"Content-Type": SEQUENCE}
    async with client.session.post(
        f"{node.url}/v1/transactions", data=transaction.encoded, headers=headers
    ) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "2")
        assert (await response.json())["error"]["data"]["retry_after_ms"] == 1_500
    error = await failure(client, "transaction.submit", transaction=text(transaction.encoded))
    assert (error.status, error.code) == (503, Code.BUSY)
