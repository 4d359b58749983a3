"""OTLP/HTTP traces, protobuf and JSON: spans of any OpenTelemetry exporter that carry the ids of an attempt."""

from __future__ import annotations

import base64
import gzip
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.requests import Request
from starlette.responses import Response

from ...core.contract import LightningStore
from ...core.errors import InvalidInput, PayloadTooLarge
from ...core.semconv import LightningResourceAttributes
from ...core.span_parts import convert_timestamp, plain_attributes
from ...core.spans import Event, Link, OtelResource, Span, SpanContext, TraceStatus
from . import wire
from .asgi import gunzip, read_body

log = logging.getLogger("agentlightning.store.server")

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
_ROLLOUT = str(LightningResourceAttributes.ROLLOUT_ID.value)
_ATTEMPT = str(LightningResourceAttributes.ATTEMPT_ID.value)
_SEQUENCE = str(LightningResourceAttributes.SPAN_SEQUENCE_ID.value)
_STATUS_CODES = ("UNSET", "OK", "ERROR")
_KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_INVALID_ARGUMENT = 3


class OtlpHandler:
    """POST /v1/traces. A group of spans that the store refuses is reported as rejected; the others are kept."""

    def __init__(self, store: LightningStore, limit: int) -> None:
        self._store = store
        self._limit = limit

    async def traces(self, request: Request) -> Response:
        """One export: 200 with what was rejected, 400 for what cannot be read."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        zipped = "gzip" in request.headers.get("accept-encoding", "").lower()
        try:
            if kind not in (PROTOBUF, JSON):
                raise InvalidInput(f"The content type is {PROTOBUF} or {JSON}, not {kind[:100]!r}")
            encoding = request.headers.get("content-encoding", "").strip().lower()
            if encoding not in ("", "identity", "gzip"):
                raise InvalidInput(f"The content encoding is gzip or none, not {encoding[:100]!r}")
            body = await read_body(request.scope, request.receive, self._limit)
            if encoding == "gzip" and body:
                body = gunzip(body, self._limit)
            export = parse(body, kind)
            answer = await self._store_all(export)
            return _encoded(_message(answer, kind), kind if kind == JSON else PROTOBUF, 200, zipped)
        except (InvalidInput, PayloadTooLarge) as error:
            return _refusal(error, kind, zipped)
        except Exception as error:
            status = wire.status_of(error)
            if status == 500:
                log.error("POST /v1/traces failed", exc_info=error)
            headers = {"Retry-After": "1"} if status == 503 else None
            return Response(wire.to_json(wire.error_body(error)), status, headers, media_type=JSON)

    async def _store_all(self, export: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
        groups: dict[tuple[str, str], list[Span]] = {}
        complaints: list[str] = []
        rejected = 0
        for span, complaint in spans_of(export):
            if span is None:
                rejected += 1
                complaints.append(complaint)
                log.warning("A span was dropped: %s", complaint)
            else:
                groups.setdefault((span.rollout_id, span.attempt_id), []).append(span)
        for key, spans in groups.items():
            try:
                await self._number(key, spans)
                await self._store.add_many_spans(spans)
            except ValueError as error:
                rejected += len(spans)
                complaints.append(str(error))
                log.warning("%d spans of rollout %s, attempt %s were refused: %s", len(spans), *key, error)
        answer = ExportTraceServiceResponse()
        if rejected:
            answer.partial_success.rejected_spans = rejected
            answer.partial_success.error_message = "; ".join(dict.fromkeys(complaints))[:2000]
        return answer

    async def _number(self, key: tuple[str, str], spans: list[Span]) -> None:
        """Our stores number a span with sequence id 0 themselves, in the order in which they keep them."""
        if hasattr(self._store, "wait_position"):
            return
        bare = [span for span in spans if span.sequence_id == 0]
        numbers = await self._store.get_many_span_sequence_ids([key] * len(bare)) if bare else ()
        for span, number in zip(bare, numbers, strict=True):
            span.sequence_id = number


def parse(body: bytes, kind: str) -> ExportTraceServiceRequest:
    """The export request in a body. Raises `InvalidInput`."""
    export = ExportTraceServiceRequest()
    try:
        if kind == PROTOBUF:
            export.ParseFromString(body)
        elif body:
            value = wire.from_json(body)
            if wire.as_dict(value) is None:
                raise InvalidInput("it is no JSON object")
            _ids_to_base64(value)
            json_format.ParseDict(value, export, ignore_unknown_fields=True)
    except (DecodeError, json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"The export request cannot be read: {error}") from None
    return export


_ID_FIELDS = ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id")


def _ids_to_base64(value: Any) -> None:
    # OTLP's JSON writes ids in hex, protobuf's JSON would read base64.
    stack = [value]
    while stack:
        item = stack.pop()
        fields = wire.as_dict(item)
        if fields is None:
            stack.extend(wire.as_list(item) or ())
            continue
        for name in _ID_FIELDS:
            if isinstance(fields.get(name), str):
                fields[name] = base64.b64encode(bytes.fromhex(fields[name])).decode()
        stack.extend(fields.values())


def spans_of(export: ExportTraceServiceRequest) -> Iterable[tuple[Span | None, str]]:
    """Every span of an export, or why it cannot be one of ours."""
    for group in export.resource_spans:
        resource = {pair.key: any_value(pair.value) for pair in group.resource.attributes}
        for scope in group.scope_spans:
            for proto in scope.spans:
                attributes = {pair.key: any_value(pair.value) for pair in proto.attributes}
                ids = {
                    **resource,
                    **{key: attributes[key] for key in (_ROLLOUT, _ATTEMPT, _SEQUENCE) if key in attributes},
                }
                rollout_id, attempt_id = ids.get(_ROLLOUT), ids.get(_ATTEMPT)
                if (
                    not isinstance(rollout_id, str)
                    or not isinstance(attempt_id, str)
                    or not rollout_id
                    or not attempt_id
                ):
                    yield None, f"span {proto.name[:200]!r} has no {_ROLLOUT} and {_ATTEMPT}"
                    continue
                try:
                    yield _span(proto, attributes, resource, group.schema_url, scope, ids), ""
                except ValueError as error:
                    yield None, f"span {proto.name[:200]!r}: {error}"


def _span(
    proto: Any, attributes: dict[str, Any], resource: dict[str, Any], schema_url: str, scope: Any, ids: dict[str, Any]
) -> Span:
    trace_id, span_id = _hex(proto.trace_id, 32), _hex(proto.span_id, 16)
    code: int = proto.status.code
    return Span(
        rollout_id=ids[_ROLLOUT],
        attempt_id=ids[_ATTEMPT],
        sequence_id=_sequence(ids.get(_SEQUENCE)),
        trace_id=trace_id,
        span_id=span_id,
        parent_id=_hex(proto.parent_span_id, 16) if proto.parent_span_id else None,
        name=proto.name,
        status=TraceStatus(
            status_code=_STATUS_CODES[code] if 0 <= code < 3 else "UNSET",  # pyright: ignore[reportArgumentType]
            description=proto.status.message or None,
        ),
        attributes=plain_attributes(attributes),
        events=[
            Event(
                name=event.name,
                attributes=plain_attributes(_mapping(event.attributes)),
                timestamp=convert_timestamp(event.time_unix_nano),
            )
            for event in proto.events
        ],
        links=[
            Link(
                context=_context(_hex(link.trace_id, 32), _hex(link.span_id, 16)),
                attributes=plain_attributes(_mapping(link.attributes)) or None,
            )
            for link in proto.links
        ],
        start_time=_seconds(proto.start_time_unix_nano),
        end_time=_seconds(proto.end_time_unix_nano),
        context=_context(trace_id, span_id),
        parent=None,
        resource=OtelResource(attributes=plain_attributes(resource), schema_url=schema_url),
        kind=_KINDS[proto.kind] if 0 < proto.kind < len(_KINDS) else None,  # pyright: ignore[reportCallIssue]
        instrumentation_scope={"name": scope.scope.name, "version": scope.scope.version},  # pyright: ignore[reportCallIssue]
    )


def _seconds(nanoseconds: int) -> float | None:
    return nanoseconds / 1e9 if nanoseconds else None


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(trace_id=trace_id, span_id=span_id, is_remote=False, trace_state={})


def _hex(value: bytes, digits: int) -> str:
    return value.hex().rjust(digits, "0")


def _sequence(value: Any) -> int:
    """A positive whole number; 0, which lets the store choose, for anything else."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return max(number, 0)


def _mapping(pairs: Iterable[Any]) -> Mapping[str, Any]:
    return {pair.key: any_value(pair.value) for pair in pairs}


def any_value(value: Any) -> Any:
    """OTLP's AnyValue as Python's; None for an empty one."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [any_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: any_value(pair.value) for pair in value.kvlist_value.values}
    return getattr(value, kind)


def _message(answer: ExportTraceServiceResponse, kind: str) -> bytes:
    if kind == JSON:
        return json_format.MessageToJson(answer, indent=None).encode()
    return answer.SerializeToString()


def _refusal(error: Exception, kind: str, zipped: bool) -> Response:
    """google.rpc.Status: field 1 is the code, field 2 the message."""
    status = wire.status_of(error)
    if kind == JSON:
        return _encoded(wire.to_json({"code": _INVALID_ARGUMENT, "message": str(error)}), JSON, status, zipped)
    text = str(error).encode()
    body = bytes((0x08, _INVALID_ARGUMENT, 0x12)) + _varint(len(text)) + text
    return _encoded(body, PROTOBUF, status, zipped)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _encoded(body: bytes, kind: str, status: int, zipped: bool) -> Response:
    headers = {"Content-Encoding": "gzip"} if zipped else {}
    return Response(gzip.compress(body) if zipped else body, status, headers, media_type=kind)
