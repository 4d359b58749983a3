"""The description of the HTTP API in OpenAPI 3.1, made from the table of routes."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from .routes import CALLS_PATH, EVENTS_PATH, HEALTH_PATH, LOG_PATH, METHODS, OTLP_TRACES_PATH, ROUTES, Route

_REFUSALS = {
    "400": "A value that cannot be used; `detail` says which.",
    "401": "The token is missing or wrong.",
    "404": "An id that the store does not know.",
    "409": "The log refused the command, or the position belongs to another log.",
    "413": "The body is larger than max_payload_mb.",
    "422": "A field is missing or of the wrong type.",
    "503": "Not now: try again after `Retry-After` seconds.",
}


def describe() -> dict[str, Any]:
    """The document that GET /v1/agl/openapi.json answers."""
    models = sorted({method.body for method in METHODS.values()}, key=lambda model: model.__name__)
    refs, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for route in ROUTES:
        method = METHODS[route.method]
        schema = definitions["$defs"].get(method.body.__name__, {})
        operation = _operation(route, schema, refs[(method.body, "validation")])
        paths.setdefault(route.path, {})[route.verb.lower()] = operation
    paths[HEALTH_PATH] = {"get": _plain("The store serves.")}
    paths[EVENTS_PATH] = {"get": _plain("Facts as server-sent events: types (repeated), since (a position).")}
    paths[LOG_PATH] = {"get": _plain("The log's id, and the first and next offset of each partition of each topic.")}
    paths[LOG_PATH + "/{topic}"] = {"get": _plain("Records of a topic: partition, offset and limit, or key and after.")}
    paths[CALLS_PATH] = {
        "post": _plain("Several calls in one request, in msgpack: [[id, method, arguments, basis], ...].")
    }
    paths[OTLP_TRACES_PATH] = {"post": _plain("OTLP/HTTP trace export, protobuf or JSON.")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "LightningStore Server", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _plain(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "OK"}}}


def _operation(route: Route, schema: dict[str, Any], ref: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = schema.get("properties", {})
    required: list[str] = schema.get("required", [])
    in_path = [name for name in properties if "{" + name + "}" in route.path]
    parameters = [{"name": name, "in": "path", "required": True, "schema": properties[name]} for name in in_path]
    operation: dict[str, Any] = {
        "operationId": f"{route.verb.lower()}_{route.path.strip('/').replace('/', '_').replace('{', '').replace('}', '')}",
        "summary": f"LightningStore.{route.method}",
        "deprecated": route.old,
        "responses": {
            str(route.status): {"description": "OK", "content": {"application/json": {}}},
            **{status: {"description": text} for status, text in _REFUSALS.items()},
        },
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
    if parameters:
        operation["parameters"] = parameters
    return operation


def _without(schema: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The body of a route that has some of the arguments in its path."""
    properties = {name: value for name, value in schema.get("properties", {}).items() if name not in names}
    required = [name for name in schema.get("required", []) if name not in names]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}
