"""Values and errors in requests and answers: models to plain data and back, exceptions to status codes and back.

Calls and their answers travel as msgpack, which keeps NaN. What msgpack cannot hold (integers beyond 64 bits, lone
surrogates) travels inside it as bytes of JSON text. The routes for everybody else speak JSON, in which NaN is null.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Callable
from typing import Any, cast

import msgspec
from pydantic import BaseModel, ValidationError

from ...core import errors
from ...core.errors import InvalidInput, PayloadTooLarge
from ...core.model.query import IncompletePage
from ...core.model.resources import ResourcesUpdate
from ...core.model.rollout import Attempt, AttemptedRollout, PaginatedResult, Rollout, Worker
from ...core.model.scalars import plain_data
from ...core.model.span import Span

MAX_CONTAINERS = 500_000
"""Lists and objects of a body; each takes 60 to 230 bytes of memory."""
MAX_ITEMS = 5_000_000
"""Members of all of them together: numbers and texts."""
MAX_RECORDS = 50_000
"""Spans, their events and their links in one request; each becomes an object of 1 to 2 kB."""
MAX_MEMBERS = 4_096
"""Of a gzip body; each costs a new machine."""
_CHUNK = 65_536
LARGE_BODY = 1_000_000
"""Bodies above this many bytes are read in a thread, so that other requests do not wait for them."""


def gunzip(data: bytes, limit: int) -> bytes:
    """Decompress, but never beyond `limit` bytes, in time linear in both. Raises `InvalidInput` and `PayloadTooLarge`."""
    parts: list[bytes] = []
    size = at = members = 0
    view = memoryview(data)
    # A gzip file may have several members, one after the other; all of them are the content.
    while at < len(data):
        members += 1
        if members > MAX_MEMBERS:
            raise InvalidInput(f"the gzip body has more than {MAX_MEMBERS} members; compress it as one")
        machine = zlib.decompressobj(31)
        while not machine.eof:
            if at >= len(data):
                raise InvalidInput("the gzip body is cut off")
            # In chunks: what is left over after a member is copied by zlib.
            chunk = view[at : at + _CHUNK]
            at += len(chunk)
            try:
                part = machine.decompress(chunk, limit + 1 - size)
            except zlib.error as error:
                raise InvalidInput(f"the body is not gzip: {error}") from None
            size += len(part)
            if size > limit:
                raise PayloadTooLarge(f"The unpacked request is larger than the limit of {limit} bytes", limit=limit)
            parts.append(part)
        at -= len(machine.unused_data)
    return b"".join(parts)


def _too_many(what: str, most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request has more than {most:,} {what}; send it in several requests", limit=most)


def _check(containers: int, items: int) -> None:
    if containers > MAX_CONTAINERS:
        raise _too_many("lists and objects", MAX_CONTAINERS)
    if items > MAX_ITEMS:
        raise _too_many("values", MAX_ITEMS)


_JSON_PARTS = re.compile(rb'"[^"]*"?|[\[{,]')


def count_json(*texts: bytes) -> None:
    """Raises `PayloadTooLarge` for JSON texts with more lists, objects or values together than a request may hold."""
    if sum(map(len, texts)) <= MAX_CONTAINERS:
        return
    if (
        sum(text.count(b"[") + text.count(b"{") for text in texts) <= MAX_CONTAINERS
        and sum(text.count(b",") for text in texts) <= MAX_ITEMS
    ):
        return
    containers = items = 0
    for text in texts:
        more_containers, more_items = _counts_of(text)
        containers, items = containers + more_containers, items + more_items
        _check(containers, items)


def _counts_of(body: bytes) -> tuple[int, int]:
    """(lists and objects, commas) of a JSON text; of what is no JSON, those before the parser stops."""
    containers = items = texts = 0
    # Without escapes a text ends at the next quote.
    for found in _JSON_PARTS.finditer(body.replace(b"\\\\", b"").replace(b'\\"', b"")):
        first = found.group()[0]
        if first == 0x22:
            texts += 1
            if texts > 2 * (containers + items) + 2:
                break  # no JSON: the parser says where
        elif first == 0x2C:
            items += 1
        else:
            containers += 1
        if containers > MAX_CONTAINERS or items > MAX_ITEMS:
            _check(containers, items)
    return containers, items


_MSGPACK_CONTAINERS = bytes((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))
_FIXED = {
    0xC0: 1, 0xC1: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3,
    0xD2: 5, 0xD3: 9, 0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18, 0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5,
}  # fmt: skip
_COUNTED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Kinds whose length follows in so many bytes."""


def count_msgpack(body: bytes) -> None:
    """As `count_json`, for msgpack."""
    size = len(body)
    if size <= MAX_CONTAINERS:
        return
    if size <= MAX_ITEMS and size - len(body.translate(None, _MSGPACK_CONTAINERS)) <= MAX_CONTAINERS:
        return
    containers = items = at = 0
    while at < size:
        kind = body[at]
        items += 1
        if kind < 0x80 or kind >= 0xE0:
            at += 1
        elif kind < 0xA0:
            containers += 1
            at += 1
        elif kind < 0xC0:
            at += 1 + (kind & 31)
        elif kind in _FIXED:
            containers += 0xDC <= kind <= 0xDF
            at += _FIXED[kind]
        else:
            width = _COUNTED[kind]
            extra = 1 if 0xC7 <= kind <= 0xC9 else 0
            at += 1 + width + extra + int.from_bytes(body[at + 1 : at + 1 + width], "big")
        if containers > MAX_CONTAINERS or items > MAX_ITEMS:
            _check(containers, items)


_KEY_VALUE: dict[int, Any] = {}
_VALUE: dict[int, Any] = {5: {1: {}}, 6: {1: _KEY_VALUE}}
_VALUE[5][1] = _VALUE
_KEY_VALUE[2] = _VALUE
_SPAN: dict[int, Any] = {9: _KEY_VALUE, 11: {3: _KEY_VALUE}, 13: {4: _KEY_VALUE}, 15: {}}
_SCOPE_SPANS: dict[int, Any] = {1: {3: _KEY_VALUE}, 2: _SPAN}
_EXPORT: dict[int, Any] = {1: {1: {1: _KEY_VALUE}, 2: _SCOPE_SPANS}}
"""The messages inside of OTLP's messages, by field number; everything else has no parts."""


def count_otlp(body: bytes) -> None:
    """As `count_json`, for an OTLP export in protobuf. What is no protobuf is left to the parser."""
    if len(body) <= 2 * MAX_RECORDS:
        return
    messages = records = fields = 0
    pending: list[tuple[int, int, dict[int, Any]]] = [(0, len(body), _EXPORT)]
    while pending:
        at, end, inside = pending.pop()
        while at < end:
            tag, at = _varint(body, at, end)
            kind = tag & 7
            fields += 1
            if fields > MAX_ITEMS:
                raise _too_many("fields", MAX_ITEMS)
            if kind == 2:
                length, at = _varint(body, at, end)
                parts = inside.get(tag >> 3)
                if parts is not None:
                    messages += 1
                    records += inside is _SCOPE_SPANS or inside is _SPAN and tag >> 3 in (11, 13)
                    if records > MAX_RECORDS:
                        raise _too_many("spans, events and links", MAX_RECORDS)
                    if messages > 2 * MAX_CONTAINERS:
                        raise _too_many("attributes", MAX_CONTAINERS)
                    if length:
                        pending.append((at, min(at + length, end), parts))
                at += length
            elif kind == 0:
                _, at = _varint(body, at, end)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise InvalidInput("The export request cannot be read: OTLP has no groups")


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = body[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            break
    raise InvalidInput("The export request cannot be read: a number in it does not end")


def count_records(export: Any) -> None:
    """Raises `PayloadTooLarge` for a parsed OTLP export with more spans, events and links than a request may hold."""
    spans = [span for group in export.resource_spans for scope in group.scope_spans for span in scope.spans]
    if sum(1 + len(span.events) + len(span.links) for span in spans) > MAX_RECORDS:
        raise _too_many("spans, events and links", MAX_RECORDS)


def count_spans(args: dict[str, Any]) -> None:
    """Raises `PayloadTooLarge` for arguments with more spans, events and links than one request may hold."""
    several: Any = args.get("spans")
    spans: list[Any] = [args.get("span"), *(several if isinstance(several, list) else ())]
    count = len(spans)
    for span in spans:
        if isinstance(span, dict):
            fields = cast("dict[str, Any]", span)
            for part in (fields.get("events"), fields.get("links")):
                count += len(cast("list[Any]", part)) if isinstance(part, list) else 0
    if count > MAX_RECORDS:
        raise _too_many("spans, events and links", MAX_RECORDS)


log = logging.getLogger("agentlightning.store.server")

_STATUS_OF: tuple[tuple[type[BaseException], int], ...] = (
    (errors.NotFound, 404),
    (errors.Unauthorized, 401),
    (errors.CrossSite, 403),
    (errors.ForeignHost, 421),
    (errors.PayloadTooLarge, 413),
    (ValidationError, 422),
    (errors.InvalidInput, 400),
    (errors.ForeignPosition, 409),
    (errors.Refused, 409),
    (errors.LogFull, 507),
    (errors.StorageError, 503),
    (errors.HistoryChanged, 503),
    (errors.LogClosed, 503),
)


def plain(value: Any) -> Any:
    """For encoders: a model's fields (unknown ones too) as a dict, numpy values as Python's; TypeError for the rest."""
    if isinstance(value, BaseModel):
        extra = value.__pydantic_extra__
        return {**value.__dict__, **extra} if extra else value.__dict__
    return plain_data(value, "sent")


_pack = msgspec.msgpack.Encoder(enc_hook=plain).encode
_unpack = msgspec.msgpack.Decoder().decode
_to_json = msgspec.json.Encoder(enc_hook=plain).encode


def json_text(value: Any) -> bytes:
    """JSON of what msgspec's encoders refuse: wide integers, lone surrogates, keys that are no strings."""
    builtins = msgspec.to_builtins(value, enc_hook=plain, builtin_types=(), str_keys=True)
    return json.dumps(builtins, separators=(",", ":")).encode("ascii")


def pack_answer(status: int, result: Any) -> bytes:
    """One answer of a batch. Raises `InvalidPayload` for what neither msgpack nor JSON can hold."""
    try:
        try:
            return _pack((status, result))
        except (OverflowError, UnicodeEncodeError, msgspec.ValidationError):
            return _pack((status, json_text(result)))
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise errors.InvalidPayload(f"the value cannot be sent: {error}") from None


def unpack(data: bytes, *, counted: bool = True) -> Any:
    """What msgpack made. Raises `InvalidPayload`, and `PayloadTooLarge` for too many values.

    `counted`: False for answers, which have as many values as were asked for.
    """
    if counted:
        count_msgpack(data)
    try:
        return _unpack(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise errors.InvalidPayload(f"the body is not msgpack: {error}") from None


def unwrap(value: Any, *, counted: bool = True) -> Any:
    """A value as it was before packing: bytes are JSON text. Raises as :func:`unpack` does."""
    if not isinstance(value, bytes):
        return value
    if counted:
        count_json(value)
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidPayload(f"a value is not JSON: {error}") from None


def as_dict(value: Any) -> dict[str, Any] | None:
    """A decoded object; None for any other value."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def as_list(value: Any) -> list[Any] | None:
    """A decoded list; None for any other value."""
    return cast("list[Any]", value) if isinstance(value, list) else None


def to_json(value: Any) -> bytes:
    """Strict JSON: NaN and infinities are null."""
    try:
        return _to_json(value)
    except (OverflowError, UnicodeEncodeError, msgspec.ValidationError):
        return json_text(value)


def from_json(body: bytes) -> Any:
    """Decode a request body. Raises `InvalidInput` with a sentence, whatever the bytes are; `PayloadTooLarge` for too many
    values.
    """
    count_json(body)
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise errors.InvalidInput("the body is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise errors.InvalidInput(f"the body is not JSON: {error}") from None


def status_of(error: BaseException) -> int:
    """The HTTP status of an exception; 500 is for those nobody expected.

    503 asks the caller to repeat the call: here, or at the process that takes this one's place.
    """
    if isinstance(error, errors.AgentLightningError) and error.retryable:
        return 503
    for kind, status in _STATUS_OF:
        if isinstance(error, kind):
            return status
    return 400 if isinstance(error, ValueError) and not isinstance(error, UnicodeError) else 500


def note_failure(shown: str, status: int, error: BaseException) -> None:
    """Log why a request was answered with 500 or more: a traceback for what nobody expected, one line for known errors."""
    if status == 500:
        log.error("%s failed", errors.printable(shown), exc_info=error)
    else:
        log.warning("%s was answered with %d: %s", errors.printable(shown), status, error)


MAX_COMPLAINTS = 200
"""Wrong values that are listed one by one."""


_OBJECT = re.compile(r"valid dictionary( or (instance of \w+|object to extract fields from))?")


def error_body(error: BaseException) -> dict[str, Any]:
    """What a caller receives: a sentence, the class, our code and fields; of unexpected ones only the class."""
    name = type(error).__name__
    if isinstance(error, ValidationError):
        if error.error_count() > MAX_COMPLAINTS:
            sentence = f"{error.error_count():,} values are wrong; send one of them alone to see what is expected"
            return {"detail": sentence, "error_type": name, "code": errors.InvalidInput.code}
        detail = error.errors(include_url=False, include_context=False, include_input=False)
        for item in detail:
            # A caller that sends JSON does not know our classes.
            item["msg"] = _OBJECT.sub("JSON object", item["msg"])
        return {"detail": detail, "error_type": name, "code": errors.InvalidInput.code}
    if isinstance(error, errors.AgentLightningError):
        fields = {key: value for key, value in error.__dict__.items() if isinstance(value, (str, int, float))}
        return {"detail": str(error), "error_type": name, "code": error.code, "fields": fields}
    if status_of(error) == 500:
        return {"detail": "Internal server error", "error_type": name}
    return {"detail": str(error), "error_type": name, "code": errors.InvalidInput.code}


def error_from(status: int, body: Any) -> errors.AgentLightningError:
    """The exception that a refused call raises at the client."""
    found = as_dict(body) or {}
    detail: Any = found.get("detail") or f"the store answered with status {status}"
    complaints = as_list(detail)
    if complaints is not None:
        detail = "; ".join(_complaint(item) for item in complaints)
    code = found.get("code") or _CODE_OF.get(status, "error")
    if code == "error" and found.get("error_type"):
        detail = f"{detail} ({found['error_type']})"
    cls = errors.error_class(str(code))
    error = cls.__new__(cls, str(detail))
    error.args = (str(detail),)
    error.__dict__.update(as_dict(found.get("fields")) or {})
    for name in ("limit", "size", "reason"):
        if cls in (errors.PayloadTooLarge, errors.Refused):
            error.__dict__.setdefault(name, None)
    return error


_CODE_OF = {400: "invalid_input", 401: "unauthorized", 404: "not_found", 413: "payload_too_large", 422: "invalid_input"}


def _complaint(item: Any) -> str:
    fields = as_dict(item)
    if fields is None:
        return str(item)
    where = ".".join(str(part) for part in fields.get("loc", ()))
    return f"{where or 'the body'}: {fields.get('msg', '')}"


def _rollout(value: Any) -> Rollout:
    return (AttemptedRollout if "attempt" in value else Rollout).model_validate(value)


def _list_of(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [read(value) for value in values]


def _page_of(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def page(value: Any) -> Any:
        kind = IncompletePage[Any] if value.get("incomplete") else PaginatedResult[Any]
        return kind.model_construct(
            items=[read(item) for item in value["items"]],
            limit=value["limit"],
            offset=value["offset"],
            total=value["total"],
        )

    return page


def _same(value: Any) -> Any:
    return value


_READ: dict[str, Callable[[Any], Any]] = {
    "attempt": Attempt.model_validate,
    "attempt_page": _page_of(Attempt.model_validate),
    "attempted": AttemptedRollout.model_validate,
    "attempteds": _list_of(AttemptedRollout.model_validate),
    "resources": ResourcesUpdate.model_validate,
    "resources_page": _page_of(ResourcesUpdate.model_validate),
    "rollout": _rollout,
    "rollouts": _list_of(_rollout),
    "rollout_page": _page_of(_rollout),
    "span_page": _page_of(Span.model_validate),
    "worker": Worker.model_validate,
    "worker_page": _page_of(Worker.model_validate),
}


def read_result(kind: str, value: Any) -> Any:
    """A result as the store's method returns it, from its plain form; None stays None."""
    return None if value is None else _READ.get(kind, _same)(value)


def compact(method: str, result: Any) -> Any:
    """What a batched call answers: of a stored span only what its sender does not know."""
    if result is None:
        return None
    if method == "add_span":
        return result.sequence_id
    if method == "add_many_spans":
        return [(span.rollout_id, span.attempt_id, span.span_id, span.sequence_id) for span in result]
    return result


def pack_call(command_id: str, method: str, args: Any, basis: str | None) -> bytes:
    """One call of a batch. Raises `InvalidPayload` for arguments that cannot travel."""
    try:
        try:
            return _pack((command_id, method, args, basis))
        except (OverflowError, UnicodeEncodeError, msgspec.ValidationError):
            return _pack((command_id, method, json_text(args), basis))
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise errors.InvalidPayload(f"the arguments of {method} cannot be sent: {error}") from None
