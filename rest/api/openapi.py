"""The description of the HTTP API in OpenAPI 3.1, made from the table of routes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ...core.model.resources import ResourcesUpdate
from ...core.model.rollout import Attempt, AttemptedRollout, Rollout, Worker
from ...core.model.span import Span
from ...projections.replica.validation import NAME_LIMIT
from ..server.invoke import MAX_KEY_LENGTH
from .encoding import MAX_CONTAINERS, MAX_ITEMS, MAX_RECORDS
from .routes import (
    BASIS_HEADER,
    CALLS_PATH,
    COMMAND_HEADER,
    EVENTS_PATH,
    HEALTH_PATH,
    LOG_PATH,
    METHODS,
    OTLP_TRACES_PATH,
    POSITION_HEADER,
    PRINT_HEADER,
    READING,
    ROUTES,
    Route,
)

_REFUSALS = {
    "400": "A value that cannot be used, or a head that is not plain; `detail` says which.",
    "401": "The token is missing or wrong.",
    "403": "A browser sent it for a page of another site.",
    "404": "An id that the store does not know.",
    "409": "The log refused the command, the key was used for another call, or the position belongs to another log.",
    "413": "The body is larger than max_payload_mb, or has too many parts.",
    "421": "The Host is none of the store's names.",
    "422": "A field is missing or of the wrong type.",
    "500": "An error that nobody expected; the store's log has it.",
    "503": "Not now: try again after `Retry-After` seconds.",
    "507": "There is no room left for the write.",
}
_ANSWERED: dict[str, type[BaseModel]] = {
    "attempt": Attempt,
    "attempted": AttemptedRollout,
    "resources": ResourcesUpdate,
    "rollout": Rollout,
    "span": Span,
    "worker": Worker,
}
"""Models by the name of a result; results of several and pages are made of them."""
_ERROR = {
    "type": "object",
    "required": ["detail"],
    "properties": {
        "detail": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
        "error_type": {"type": "string", "description": "The name of the exception's class."},
        "code": {"type": "string", "description": "What a client raises it as."},
        "fields": {"type": "object"},
    },
}
_REF = "#/components/schemas/{model}"
_INTEGER = {"type": "integer"}


def describe() -> dict[str, Any]:
    """The document that GET /v1/agl/openapi.json answers."""
    taken = sorted({method.body for method in METHODS.values()}, key=lambda model: model.__name__)
    modes: list[Any] = [(model, "validation") for model in taken]
    modes += [(model, "serialization") for model in _ANSWERED.values()]
    refs, definitions = models_json_schema(modes, ref_template=_REF)
    schemas: dict[str, Any] = {**definitions.get("$defs", {}), "Error": _ERROR}
    answers = {name: refs[(model, "serialization")] for name, model in _ANSWERED.items()}
    paths: dict[str, Any] = {}
    for route in ROUTES:
        method = METHODS[route.method]
        body = refs[(method.body, "validation")]
        schema = schemas[body["$ref"].rpartition("/")[2]]
        paths.setdefault(route.path, {})[route.verb.lower()] = _operation(route, schema, body, answers)
    paths.update(_other_paths())
    return {
        "openapi": "3.1.0",
        "info": {"title": "LightningStore Server", "version": "1", "description": _LIMITS},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                status: _response(text, {"$ref": _REF.format(model="Error")}) for status, text in _REFUSALS.items()
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


_LIMITS = (
    f"Ids and names have at most {NAME_LIMIT:,} characters. A body has at most {MAX_CONTAINERS:,} lists and objects and "
    f"{MAX_ITEMS:,} values, and {MAX_RECORDS:,} spans, events and links; larger ones, and those above max_payload_mb, are 413."
)


def _other_paths() -> dict[str, Any]:
    """What is no call of one method."""
    facts = [_query("types", {"type": "array", "items": {"type": "string"}}), _query("since", {"type": "string"})]
    whole = {"type": "integer", "minimum": 0}
    records = [_query(name, whole) for name in ("partition", "offset", "limit")]
    records += [_query("key", {"type": "string"}), _query("after", {"type": "integer", "minimum": -1})]
    topic = {"name": "topic", "in": "path", "required": True, "schema": {"type": "string"}}
    anything: dict[str, Any] = {"schema": {}}
    return {
        HEALTH_PATH: {"get": _plain("The store serves.", {"application/json": anything})},
        EVENTS_PATH: {
            "get": _plain(
                "Facts as server-sent events: types (repeated), since (a position, or the id of an event).",
                {"text/event-stream": anything},
                parameters=facts,
            )
        },
        LOG_PATH: {
            "get": _plain(
                "The log's id, and the first and next offset of each partition of each topic.",
                {"application/json": anything},
            )
        },
        LOG_PATH + "/{topic}": {
            "get": _plain(
                "Records of a topic: partition, offset and limit, or key and after.",
                {"application/json": anything},
                parameters=[topic, *records],
            )
        },
        CALLS_PATH: {
            "post": _plain(
                "Several calls in one request, in msgpack: [[id, method, arguments, basis], ...].",
                {"application/msgpack": anything},
                requestBody={"required": True, "content": {"application/msgpack": anything}},
            )
        },
        OTLP_TRACES_PATH: {
            "post": _plain(
                "OTLP/HTTP trace export, protobuf or JSON.",
                {"application/x-protobuf": anything, "application/json": anything},
                requestBody={
                    "required": True,
                    "content": {"application/json": {"schema": {"type": "object"}}, "application/x-protobuf": anything},
                },
            )
        },
    }


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _plain(summary: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": content}, **_refusals()}, **more}


def _refusals() -> dict[str, Any]:
    return {status: {"$ref": f"#/components/responses/{status}"} for status in _REFUSALS}


def _response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _operation(
    route: Route, schema: dict[str, Any], ref: dict[str, Any], answers: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    properties: dict[str, Any] = schema.get("properties", {})
    required: list[str] = schema.get("required", [])
    in_path = [name for name in properties if "{" + name + "}" in route.path]
    parameters = [{"name": name, "in": "path", "required": True, "schema": _id(properties[name])} for name in in_path]
    name = route.path.strip("/").replace("/", "_").replace("{", "").replace("}", "")
    answer = _response("OK", _answer(route, answers))
    answer["headers"] = {
        POSITION_HEADER: {
            "description": "What is applied; send it back to read at least that.",
            "schema": {"type": "string"},
        },
        PRINT_HEADER: {
            "description": f"What a next command can be based on ({BASIS_HEADER}).",
            "schema": {"type": "string"},
        },
    }
    operation: dict[str, Any] = {
        "operationId": f"{route.verb.lower()}_{name}",
        "summary": f"LightningStore.{route.method}",
        "deprecated": route.old,
        "responses": {str(route.status): answer, **_refusals()},
    }
    if route.source == "query":
        parameters += [
            {"name": name, "in": "query", "required": name in required, "schema": value}
            for name, value in properties.items()
            if name not in in_path
        ]
    else:
        body = properties.get(route.whole, {}) if route.whole else _without(schema, in_path) if in_path else ref
        operation["requestBody"] = {"required": not route.optional, "content": {"application/json": {"schema": body}}}
    if route.method not in READING:
        key = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH, "pattern": "^[\\x21-\\x7e]+$"}
        parameters.append(
            {
                "name": COMMAND_HEADER,
                "in": "header",
                "required": False,
                "schema": key,
                "description": "Names this call: a repetition under the same key gets the first one's answer.",
            }  # fmt: skip
        )
    if parameters:
        operation["parameters"] = parameters
    return operation


def _id(schema: dict[str, Any]) -> dict[str, Any]:
    """A part of a path is at least one character."""
    return {**schema, "minLength": 1, "maxLength": NAME_LIMIT}


def _answer(route: Route, answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The schema of what the route answers with its own status."""
    result = METHODS[route.method].result
    if route.answer == "sequence_id":
        return {"type": "object", "required": ["sequence_id"], "properties": {"sequence_id": _INTEGER}}
    if result == "number":
        return _INTEGER
    if result in ("none", "plain", "fingerprint", "numbers"):
        return {}
    kind, _, _ = result.partition("_page")
    one = answers[kind.removesuffix("s") if kind in ("attempteds", "rollouts", "spans") else kind]
    if kind == "rollout" or kind == "rollouts":
        one = {"anyOf": [answers["attempted"], answers["rollout"]]}
    several = {"type": "array", "items": one}
    if route.answer == "items" or result in ("attempteds", "rollouts", "spans"):
        return several
    if result.endswith("_page"):
        names = ("items", "limit", "offset", "total")
        fields = {"items": several, "limit": _INTEGER, "offset": _INTEGER, "total": _INTEGER}
        return {
            "type": "object", "required": list(names), "properties": {**fields, "incomplete": {"type": "boolean"}},
        }  # fmt: skip
    return one if route.answer == "must_exist" else {"anyOf": [one, {"type": "null"}]}


def _without(schema: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The body of a route that has some of the arguments in its path."""
    properties = {name: value for name, value in schema.get("properties", {}).items() if name not in names}
    required = [name for name in schema.get("required", []) if name not in names]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}
