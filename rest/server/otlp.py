"""OTLP/HTTP traces, protobuf and JSON: spans of any OpenTelemetry exporter that carry the ids of an attempt."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from starlette.requests import Request
from starlette.responses import Response

from ...core.errors import InvalidInput, NotFound, PayloadTooLarge, printable
from ...core.model.semconv import LightningResourceAttributes
from ...core.model.span import (
    Event,
    Link,
    OtelResource,
    Span,
    SpanContext,
    TraceStatus,
    convert_timestamp,
    plain_attributes,
)
from ...core.model.store_interface import LightningStore
from ..api import encoding
from ..api.encoding import LARGE_BODY, count_json, count_otlp, count_records, gunzip
from .invoke import read_body

log = logging.getLogger("agentlightning.store.server")

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
_ROLLOUT = str(LightningResourceAttributes.ROLLOUT_ID.value)
_ATTEMPT = str(LightningResourceAttributes.ATTEMPT_ID.value)
_SEQUENCE = str(LightningResourceAttributes.SPAN_SEQUENCE_ID.value)
_STATUS_CODES = ("UNSET", "OK", "ERROR")
_KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_INVALID_ARGUMENT = 3
MOST_LINES = 10
"""Lines in the log about spans of one request that were dropped."""


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
            content = request.headers.get("content-encoding", "").strip().lower()
            if content not in ("", "identity", "gzip"):
                raise InvalidInput(f"The content encoding is gzip or none, not {content[:100]!r}")
            body = await read_body(request.scope, request.receive, self._limit)
            zipped_body = content == "gzip" and bool(body)
            if zipped_body or len(body) > LARGE_BODY:  # a small one may unpack to a large one
                spans, complaints = await asyncio.to_thread(self._read, body, kind, zipped_body)
            else:
                spans, complaints = self._read(body, kind, zipped_body)
            answer = await self._store_all(spans, complaints)
            return _encoded(_message(answer, kind), kind if kind == JSON else PROTOBUF, 200, zipped)
        except (InvalidInput, PayloadTooLarge) as error:
            return _refusal(error, kind, zipped)
        except Exception as error:
            status = encoding.status_of(error)
            if status >= 500:
                encoding.note_failure("POST /v1/traces", status, error)
            headers = {"Retry-After": "1"} if status == 503 else None
            return Response(encoding.to_json(encoding.error_body(error)), status, headers, media_type=JSON)

    def _read(self, body: bytes, kind: str, zipped: bool) -> tuple[list[Span], list[str]]:
        """The spans of an export, and a sentence for each that could not be read."""
        if zipped:
            body = gunzip(body, self._limit)
        (count_otlp if kind == PROTOBUF else count_json)(body)
        export, complaints = parse(body, kind)
        count_records(export)
        spans: list[Span] = []
        for span, complaint in spans_of(export):
            if span is None:
                complaints.append(complaint)
            else:
                spans.append(span)
        return spans, complaints

    async def _store_all(self, spans: list[Span], complaints: list[str]) -> ExportTraceServiceResponse:
        """``complaints`` has one sentence for each span that could not be read."""
        groups: dict[tuple[str, str], list[Span]] = {}
        for span in spans:
            groups.setdefault((span.rollout_id, span.attempt_id), []).append(span)
        for key, group in groups.items():
            complaints += await self._add(key, group)
        _note_dropped(complaints)
        answer = ExportTraceServiceResponse()
        if complaints:
            answer.partial_success.rejected_spans = len(complaints)
            answer.partial_success.error_message = "; ".join(dict.fromkeys(complaints))[:2000]
        return answer

    async def _add(self, key: tuple[str, str], spans: list[Span]) -> list[str]:
        """Store the spans of one attempt; a sentence for each that is refused. One of them costs no other."""
        pending = [spans]
        refused: list[str] = []
        while pending:
            batch = pending.pop()
            try:
                await self._number(key, batch)
                await self._store.add_many_spans(batch)
            except ValueError as error:
                if len(batch) > 1 and not isinstance(error, NotFound):
                    half = len(batch) // 2
                    pending += [batch[half:], batch[:half]]
                    await asyncio.sleep(0)  # other requests do not wait until the last bad span is found
                else:
                    refused += [str(error)] * len(batch)
        return refused

    async def _number(self, key: tuple[str, str], spans: list[Span]) -> None:
        """Our stores number a span with sequence id 0 themselves, in the order in which they keep them."""
        if hasattr(self._store, "wait_position"):
            return
        bare = [span for span in spans if span.sequence_id == 0]
        numbers = await self._store.get_many_span_sequence_ids([key] * len(bare)) if bare else ()
        for span, number in zip(bare, numbers, strict=True):
            span.sequence_id = number


def _note_dropped(complaints: Sequence[str]) -> None:
    """A line for each kind of complaint, but few for one request: a wrong exporter repeats all of them every few seconds."""
    kinds = Counter(complaints)
    for complaint, count in kinds.most_common(MOST_LINES):
        log.warning("%s dropped: %s", "A span was" if count == 1 else f"{count} spans were", printable(complaint))
    rest = len(kinds) - MOST_LINES
    if rest > 0:
        log.warning("%d more complaints about spans of the same request", rest)


def parse(body: bytes, kind: str) -> tuple[ExportTraceServiceRequest, list[str]]:
    """The export request in a body, and a sentence for each span in it that cannot be read. Raises `InvalidInput`."""
    try:
        return _parse_protobuf(body) if kind == PROTOBUF else _parse_json(body)
    except (DecodeError, json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"The export request cannot be read: {error}") from None


def _parse_protobuf(body: bytes) -> tuple[ExportTraceServiceRequest, list[str]]:
    export = ExportTraceServiceRequest()
    try:
        export.ParseFromString(body)
        return export, []
    except DecodeError:
        # One text that is no UTF-8 makes protobuf refuse everything around it: read span by span.
        export, complaints = ExportTraceServiceRequest(), list[str]()
    for group in _fields_of(body, 1):
        resource = export.resource_spans.add()
        resource.ParseFromString(_without(group, 2))
        for scope_group in _fields_of(group, 2):
            scope = resource.scope_spans.add()
            scope.ParseFromString(_without(scope_group, 2))
            for data in _fields_of(scope_group, 2):
                try:
                    scope.spans.append(ProtoSpan.FromString(data))
                except DecodeError as error:
                    complaints.append(f"a span cannot be read: {error}")
    return export, complaints


def _fields_of(message: bytes, number: int) -> Iterator[bytes]:
    """The contents of the fields of this number that have a length. Raises `DecodeError`."""
    return (message[start:end] for found, _, start, end in _fields(message) if found == number)


def _without(message: bytes, number: int) -> bytes:
    """The message without the fields of this number."""
    return b"".join(message[begin:end] for found, begin, _, end in _fields(message) if found != number)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Number, begin, begin of the content and end of each field of a message in protobuf's wire format."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _read_varint(message, at)
        start = at
        if tag & 7 == 0:
            _, at = _read_varint(message, at)
        elif tag & 7 == 2:
            size, start = _read_varint(message, at)
            at = start + size
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        else:
            raise DecodeError(f"wire type {tag & 7}")
        if at > len(message):
            raise DecodeError("a field ends after its message")
        yield tag >> 3, begin, start, at


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise DecodeError("a number does not end")


_ID_FIELDS = ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id")


def _parse_json(body: bytes) -> tuple[ExportTraceServiceRequest, list[str]]:
    export, complaints = ExportTraceServiceRequest(), list[str]()
    value: Any = _json_of(body) if body else dict[str, Any]()
    if encoding.as_dict(value) is None:
        raise InvalidInput("it is no JSON object")
    taken: list[tuple[Any, list[Any]]] = []
    for group in _taken(value, "resourceSpans", "resource_spans"):
        fields = encoding.as_dict(group) or {}
        scopes = _taken(fields, "scopeSpans", "scope_spans")
        taken.append((fields, [(encoding.as_dict(scope) or {}, _taken(scope, "spans")) for scope in scopes]))
    for fields, scopes in taken:
        resource = json_format.ParseDict(fields, export.resource_spans.add(), ignore_unknown_fields=True)
        for scope_fields, spans in scopes:
            scope = json_format.ParseDict(scope_fields, resource.scope_spans.add(), ignore_unknown_fields=True)
            for span in spans:
                try:
                    _ids_to_base64(span)
                    scope.spans.append(json_format.ParseDict(span, ProtoSpan(), ignore_unknown_fields=True))
                except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
                    complaints.append(f"a span cannot be read: {error}")
    return export, complaints


def _taken(value: Any, *names: str) -> list[Any]:
    """What stands under one of the names, taken out of the mapping; InvalidInput for what is no list."""
    fields = encoding.as_dict(value)
    if fields is None:
        raise InvalidInput("a part of it is no JSON object")
    found = [fields.pop(name) for name in names if name in fields]
    items = encoding.as_list(found[0]) if found and found[0] is not None else []
    if items is None:
        raise InvalidInput(f"{names[0]} is no list")
    return items


def _json_of(body: bytes) -> Any:
    try:
        return encoding.from_json(body)
    except InvalidInput:
        # The standard library's parser takes halves of surrogate pairs, which JavaScript's exporters send.
        return _whole_texts(json.loads(body))


def _whole_texts(value: Any) -> Any:
    """The value with the halves of surrogate pairs in its texts replaced, since protobuf has UTF-8 only."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    several = encoding.as_list(value)
    if several is not None:
        return [_whole_texts(item) for item in several]
    fields = encoding.as_dict(value)
    return value if fields is None else {_whole_texts(key): _whole_texts(item) for key, item in fields.items()}


def _ids_to_base64(value: Any) -> None:
    # OTLP's JSON writes ids in hex, protobuf's JSON would read base64.
    stack = [value]
    while stack:
        item = stack.pop()
        fields = encoding.as_dict(item)
        if fields is None:
            stack.extend(encoding.as_list(item) or ())
            continue
        for name in _ID_FIELDS:
            if isinstance(fields.get(name), str):
                fields[name] = base64.b64encode(bytes.fromhex(fields[name])).decode()
        stack.extend(fields.values())


def spans_of(export: ExportTraceServiceRequest) -> Iterable[tuple[Span | None, str]]:
    """Every span of an export, or why it cannot be one of ours."""
    seen: Counter[bytes] = Counter()
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
                    yield _span(proto, attributes, resource, group.schema_url, scope, ids, seen), ""
                except ValueError as error:
                    yield None, f"span {proto.name[:200]!r}: {error}"


def _span(
    proto: Any,
    attributes: dict[str, Any],
    resource: dict[str, Any],
    schema_url: str,
    scope: Any,
    ids: dict[str, Any],
    seen: Counter[bytes],
) -> Span:
    trace_id, span_id = _made_ids(proto, ids, seen)
    code: int = proto.status.code
    return Span(
        rollout_id=ids[_ROLLOUT],
        attempt_id=ids[_ATTEMPT],
        sequence_id=_sequence(ids.get(_SEQUENCE)),
        trace_id=trace_id,
        span_id=span_id,
        parent_id=_hex(proto.parent_span_id, 16) if any(proto.parent_span_id) else None,
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


def _made_ids(proto: Any, ids: Mapping[str, Any], seen: Counter[bytes]) -> tuple[str, str]:
    """The ids of trace and span; where one is missing or zero, one made of all that the span says.

    So spans without ids are as many as there are, `seen` tells those apart that say the same, and an export that is
    sent again after a lost answer changes nothing.
    """
    if any(proto.trace_id) and any(proto.span_id):
        return _hex(proto.trace_id, 32), _hex(proto.span_id, 16)
    text = repr((ids.get(_ROLLOUT), ids.get(_ATTEMPT))).encode() + proto.SerializeToString(deterministic=True)
    digest = sha256(text + seen[text].to_bytes(8, "big")).hexdigest()
    seen[text] += 1
    trace_id = _hex(proto.trace_id, 32) if any(proto.trace_id) else digest[:32]
    return trace_id, _hex(proto.span_id, 16) if any(proto.span_id) else digest[32:48]


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
    status = encoding.status_of(error)
    if kind == JSON:
        return _encoded(encoding.to_json({"code": _INVALID_ARGUMENT, "message": str(error)}), JSON, status, zipped)
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
