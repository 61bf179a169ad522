"""The documents /openrpc.json and /openapi.json, made from the tables that the server dispatches by (SPEC-RPC-9)."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from fastledger.rpc.errors import ErrorBody
from fastledger.rpc.http.routes import Content, Route
from fastledger.rpc.methods import Method
from fastledger.rpc.protocol import JSON_TYPE, RpcError
from fastledger.state.kind import Kind
from fastledger.state.views import struct_form
from fastledger.version import VERSION

_OPENRPC_REFS = "#/components/schemas/{name}"
_COMMON_ERRORS = {
    400: "the request is at fault",
    401: "the caller has to say who it is",
    403: "the caller may not",
    421: "the request is for another host",
    429: "too much; Retry-After tells when",
    500: "something went wrong in the node; the answer names an incident of its log",
    503: "busy, halted or stopping; Retry-After tells when",
}
_ERRORS = {
    **_COMMON_ERRORS,
    404: "there is nothing",
    405: "another method",
    408: "the body did not come in time",
    409: "in conflict with what stands there",
    410: "gone",
    412: "another protocol version",
    413: "too long",
    415: "another media type",
    416: "no such range",
    426: "WebSocket only",
    460: "the digest does not match",
    507: "no space left",
}


class CallBody(msgspec.Struct, frozen=True):
    """A JSON-RPC 2.0 request; methods and their parameters are those of /openrpc.json."""

    jsonrpc: Literal["2.0"]
    method: str
    params: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    id: str | int | msgspec.UnsetType | None = msgspec.UNSET


class AnswerBody(msgspec.Struct, frozen=True):
    """A JSON-RPC 2.0 response: ``result`` or ``error``."""

    jsonrpc: Literal["2.0"]
    id: str | int | None
    result: Any = None
    error: RpcError | None = None


def openrpc(methods: Iterable[Method], kinds: Iterable[Kind]) -> bytes:
    """Returns the OpenRPC 1.3 document of the methods, in JSON.

    Beside the types of parameters and results, its schemas describe the bodies of ``kinds``, each with the kind's name
    under ``x-kind``. No method takes a body: it is signed inside a transaction. Who makes transactions in another
    language generates the types from these (byte strings are in hexadecimal or base64 here, plain in CBOR).
    """
    rows = sorted(methods, key=lambda row: row.name)
    bodies = {struct_form(kind.body).type: kind.name for kind in kinds}
    types = [type_ for row in rows for type_ in (row.params, row.result)]
    schemas, components = msgspec.json.schema_components([*types, *bodies], ref_template=_OPENRPC_REFS)
    for schema, name in zip(schemas[len(types) :], bodies.values(), strict=True):
        _resolved(schema, components)["x-kind"] = name
    described = [
        _method(row, schemas[2 * place], schemas[2 * place + 1], components) for place, row in enumerate(rows)
    ]
    document = {
        "openrpc": "1.3.2",
        "info": {"title": "FastLedger", "version": VERSION},
        "methods": described,
        "components": {"schemas": components},
    }
    return msgspec.json.encode(document)


def _method(row: Method, params: dict[str, Any], result: dict[str, Any], components: dict[str, Any]) -> Any:
    shape = _resolved(params, components)
    required = shape.get("required", [])
    return {
        "name": row.name,
        "summary": row.summary,
        "tags": [{"name": row.role}],
        "paramStructure": "by-name",
        "params": [
            {"name": name, "required": name in required, "schema": schema}
            for name, schema in shape.get("properties", {}).items()
        ],
        "result": {"name": "result", "schema": result},
        "x-role": row.role,
    }


def _resolved(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: dict[str, Any] = components[reference.rpartition("/")[2]]
    return found


def openapi(routes: Sequence[Route]) -> bytes:
    """Returns the OpenAPI 3.1 document of the paths, in JSON."""
    types = [ErrorBody, *_schema_types(routes)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_OPENRPC_REFS)
    by_type = {repr(type_): schema for type_, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    document = {
        "openapi": "3.1.0",
        "info": {"title": "FastLedger", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "certificate": {"type": "mutualTLS"},
            },
        },
        "security": [{}, {"token": []}, {"certificate": []}],
    }
    return msgspec.json.encode(document)


def _schema_types(routes: Sequence[Route]) -> list[Any]:
    found: dict[str, Any] = {}
    for route in routes:
        contents = [route.request, *route.responses.values()]
        for schema in [
            *(content.schema for content in contents if content is not None),
            *(parameter.schema for parameter in route.parameters),
        ]:
            if schema is not None:
                found[repr(schema)] = schema
    return list(found.values())


def _operation(route: Route, by_type: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()} {route.path}",
        "responses": _responses(route, by_type),
        "x-role": route.role,
    }
    if route.parameters:
        operation["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.required or parameter.place == "path",
                "description": parameter.description,
                "schema": by_type[repr(parameter.schema)],
            }
            for parameter in route.parameters
        ]
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": _content(route.request, by_type)}
    return operation


def _responses(route: Route, by_type: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, content in route.responses.items():
        response: dict[str, Any] = {"description": "success" if status < 400 else _ERRORS[status]}
        if content is not None:
            response["content"] = _content(content, by_type)
        responses[str(status)] = response
    statuses = {*_COMMON_ERRORS, *route.errors}
    error = {JSON_TYPE: {"schema": by_type[repr(ErrorBody)]}}
    for status in sorted(statuses):
        responses.setdefault(str(status), {"description": _ERRORS.get(status, "an error"), "content": error})
    return responses


def _content(content: Content, by_type: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {}
    if content.schema is not None:
        described["schema"] = by_type[repr(content.schema)]
    return {content.media_type: described}
