"""The descriptions are those of the server: generated from its tables, true of its answers, and safe to fuzz."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from node_world import NodeThread, NodeWorld, RawClient, raw_client, serve_world
from test_rpc import ALL_ROLES, SEQUENCE

from fastledger.errors import InputError
from fastledger.rpc.errors import RpcFault
from fastledger.rpc.federation import federation_methods
from fastledger.rpc.jobs import Jobs
from fastledger.rpc.jsonrpc import check_names, decode_params, decode_request
from fastledger.rpc.operator import Hooks, operator_methods
from fastledger.rpc.protocol import decode_blobs
from fastledger.rpc.server import Extras
from fastledger.rpc.signatures import low_s_sequence
from fastledger.rpc.transactions import TRANSACTION_METHODS
from fastledger.subjects.identity import IDENTITIES

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def operated() -> Extras:
    hooks = Hooks(figures=dict, reload=list, stop=lambda: None)
    return Extras(methods=(*operator_methods(Jobs(), hooks), *federation_methods(None)))


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def example_of(name: str, node: NodeWorld) -> Any:
    """A value for a parameter of that name."""
    world = node.world
    folder = world.patient.open_folders("imaging")
    return {
        "txid": world.ledger.query(limit=1).entries[0].txid.hex(),
        "transaction": "AAAA",
        "transactions": ["AAAA"],
        "height": 1,
        "chain": world.ledger.chain_id.hex(),
        "identity": world.doctor.identity.hex(),
        "key": world.ledger.entity(IDENTITIES, world.doctor.identity).key.hex(),
        "folder": folder.body_map["folders"][0].hex(),
        "digests": ["00" * 32],
        "job": "j1",
        "destination": "/nowhere/at/all",
        "address": "127.0.0.1:8471",
        "proposer": world.ledger.genesis.proposers[0].hex(),
        "digest": "00" * 32,
        "version": 1,
    }.get(name, "00" * 16)


async def test_every_method_answers_as_it_is_described(tmp_path: Path) -> None:  # SPEC-RPC-2, SPEC-RPC-9
    async with (
        serve_world(tmp_path / "ledger", access=ALL_ROLES, extras=operated()) as node,
        raw_client(node.url) as client,
    ):
        document = json.loads((await client.get("/openrpc.json"))[1])
        assert {method["name"] for method in document["methods"]} == set(node.server.methods)
        assert document["openrpc"].startswith("1.")
        answered = 0
        for method in document["methods"]:
            answered += await check_method(document, method, node, client)
        assert answered >= 17, "most methods have an answer in this world"


async def check_method(
    document: dict[str, Any], method: dict[str, Any], node: NodeWorld, client: RawClient
) -> bool:
    assert method["summary"].endswith((".", "newest"))
    required = {item["name"]: example_of(item["name"], node) for item in method["params"] if item["required"]}
    for item in method["params"]:
        if item["required"]:
            resolved(document, item["schema"]).validate(required[item["name"]])
    request = {"jsonrpc": "2.0", "id": 1, "method": method["name"], "params": required}
    status, body = await client.post("/v1/rpc", msgspec.json.encode(request))
    answer = json.loads(body)
    if "error" in answer:
        assert answer["error"]["code"] != -32601
        assert answer["error"]["code"] != -32602, method["name"]
        return False
    assert status == 200
    resolved(document, method["result"]["schema"]).validate(answer["result"])
    return True


async def test_roles_in_the_description_are_those_that_are_checked(tmp_path: Path) -> None:  # SPEC-RPC-9
    async with serve_world(tmp_path / "ledger", extras=operated()) as node, raw_client(node.url) as client:
        document = json.loads((await client.get("/openrpc.json"))[1])
        for method in document["methods"]:
            request = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": method["name"],
                "params": {"nothing": "of the kind"},
            }
            status, body = await client.post("/v1/rpc", msgspec.json.encode(request))
            code = json.loads(body)["error"]["code"]
            if method["x-role"] == "operator":
                assert (status, code) == (401, 315), method["name"]
            else:
                assert code == -32602, method["name"]
        paths = json.loads((await client.get("/openapi.json"))[1])["paths"]
        described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
        assert described == {(route.method, route.path) for route in node.server.table.routes}


def test_openapi_survives_schemathesis(tmp_path: Path) -> None:  # SPEC-RPC-9
    schemathesis = pytest.importorskip("schemathesis")

    @schemathesis.serializer(SEQUENCE)
    def junk(_: Any, value: Any) -> bytes:
        return msgspec.json.encode(value)

    with NodeThread(tmp_path / "ledger") as node:
        schema = schemathesis.openapi.from_url(f"{node.url}/openapi.json")
        tried = set()
        for found in schema.get_all_operations():
            operation = found.ok()
            if operation.path != "/v1/subscribe":
                conform(operation, node.url)
                tried.add(operation.path)
    assert {"/v1/rpc", "/v1/transactions", "/v1/blobs", "/health/ready", "/openrpc.json"} <= tried


def conform(operation: Any, url: str) -> None:
    """A few requests of every kind to one path: each answer is one that the description has."""
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    # That a body is CBOR of the right shape is nothing that a JSON schema can say.
    binary = operation.path in ("/v1/transactions", "/v1/blobs")
    excluded = [positive_data_acceptance] if binary else []

    @settings(max_examples=4, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        case.call_and_validate(base_url=url, timeout=20, excluded_checks=excluded)

    check()


# Decoders of requests: any bytes decode or raise their error.


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_fault(data: bytes) -> None:  # SPEC-RPC-1
    try:
        request = decode_request(data)
    except RpcFault:
        return
    assert request.jsonrpc == "2.0"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(method=st.sampled_from(TRANSACTION_METHODS), params=JSON_VALUES)
def test_any_parameters_fit_or_are_a_fault(method: Any, params: Any) -> None:  # SPEC-RPC-1
    request = {"jsonrpc": "2.0", "id": 1, "method": method.name, "params": params}
    data = json.dumps(request, allow_nan=False, default=str) if _plain(params) else b"{}"
    encoded = data.encode() if isinstance(data, str) else data
    try:
        found = decode_request(encoded)
        decoded = decode_params(method.decode, found, encoded, required=method.required)
    except RpcFault:
        return
    assert type(decoded) is method.params


def _plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@given(st.dictionaries(st.text(max_size=5), st.integers(), min_size=1, max_size=5), st.data())
def test_a_name_that_stands_twice_is_found(value: dict[str, int], data: st.DataObject) -> None:
    check_names(json.dumps(value).encode())
    name = data.draw(st.sampled_from(sorted(value)))
    doubled = json.dumps(value)[:-1] + f",{json.dumps(name)}:0}}"
    with pytest.raises(RpcFault):
        check_names(doubled.encode())


@given(st.binary(max_size=300))
def test_any_bytes_are_blobs_or_an_error(data: bytes) -> None:
    try:
        blobs = decode_blobs(data, count_max=10)
    except InputError:
        return
    assert sum(map(len, blobs)) <= len(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_sequence_or_an_error(data: bytes) -> None:
    try:
        canonical, _ = low_s_sequence(data)
    except InputError:
        return
    assert len(canonical) == len(data)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with NodeThread(tmp_path_factory.mktemp("fuzz") / "ledger") as node:
        yield node


@FEW
@given(
    path=st.sampled_from(
        [("/v1/rpc", "application/json"), ("/v1/transactions", SEQUENCE), ("/v1/blobs", SEQUENCE)]
    ),
    body=st.binary(max_size=2_000),
)
def test_any_body_gets_one_of_the_described_answers(
    served: NodeThread, path: tuple[str, str], body: bytes
) -> None:
    async def post() -> tuple[int, bytes]:
        async with raw_client(served.url) as client:
            return await client.post(path[0], body, path[1])

    status, answer = asyncio.run(post())
    assert status in (200, 204, 400)
    if status == 400:
        assert json.loads(answer)["error"]["data"]["reason"]
