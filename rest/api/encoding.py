"""Values and errors on the wire: models to plain data and back, exceptions to status codes and back.

Calls and their answers travel as msgpack, which keeps NaN. What msgpack cannot hold (integers beyond 64 bits, lone
surrogates) travels inside it as bytes of JSON text. The routes for everybody else speak JSON, in which NaN is null.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any, cast

import msgspec
from pydantic import BaseModel, ValidationError

from ...core import errors
from ...core.model.query import IncompletePage
from ...core.model.resources import ResourcesUpdate
from ...core.model.rollout import Attempt, AttemptedRollout, PaginatedResult, Rollout, Worker
from ...core.model.scalars import plain_data
from ...core.model.span import Span
from .limits import count_json, count_msgpack

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
    """What a caller is told: a sentence, the class, our code and fields; of unexpected ones only the class."""
    name = type(error).__name__
    if isinstance(error, ValidationError):
        if error.error_count() > MAX_COMPLAINTS:
            sentence = f"{error.error_count():,} values are wrong; send one of them alone to see what is expected"
            return {"detail": sentence, "error_type": name, "code": errors.InvalidInput.code}
        detail = error.errors(include_url=False, include_context=False, include_input=False)
        for item in detail:
            # Whoever sends JSON knows nothing of our classes.
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
