"""A span: one traced operation of one attempt, in the form it is stored and sent."""

import time
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from .. import ids
from .semconv import AGL_VIRTUAL

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
else:
    # At run time any object with the attributes of an OpenTelemetry span will do.
    ReadableSpan = Any
import json
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Protocol,
    cast,
    runtime_checkable,
)

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from .scalars import plain_scalar

__all__ = [
    "AttributeValue",
    "Attributes",
    "Event",
    "Link",
    "OtelResource",
    "ReceivedSpan",
    "Span",
    "SpanAttributeNames",
    "SpanContext",
    "SpanCoreFields",
    "SpanLike",
    "SpanNames",
    "SpanRecordingContext",
    "StatusCode",
    "TraceState",
    "TraceStatus",
    "convert_timestamp",
    "reads_like_a_span",
]

AttributeValue = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
Attributes = dict[str, AttributeValue]
TraceState = dict[str, str]
StatusCode = Literal["UNSET", "OK", "ERROR"]

# Above this a number of seconds would be a date 31,000 years ahead: it is nanoseconds.
_NANOSECONDS_FROM = 1e12
_EXACT_PRIMITIVES: frozenset[type] = frozenset((str, bool, int, float))


def convert_timestamp(timestamp: float | None) -> float | None:
    """Seconds from seconds or nanoseconds since the epoch; None and 0 (OTLP's "unset") give None."""
    if not timestamp:
        return None
    return timestamp / 1e9 if timestamp > _NANOSECONDS_FROM else timestamp


def _checked_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    # Spans are built thousands of times a second. A union schema costs three times this loop.
    for key, value in attributes.items():
        if type(value) in _EXACT_PRIMITIVES:
            continue
        if isinstance(value, (list, tuple)):
            attributes[key] = _checked_list(key, cast(Sequence[Any], value))
            continue
        attributes[key] = plain_scalar(value)
        if type(attributes[key]) not in _EXACT_PRIMITIVES:
            raise ValueError(
                f"attribute {key!r} must be a str, bool, int, float or a list of one of them, "
                f"not {type(value).__name__}"
            )
    return attributes


def _checked_list(key: str, values: Sequence[Any]) -> Sequence[Any]:
    plain = list(values)
    if not {type(value) for value in plain} <= _EXACT_PRIMITIVES:
        plain = [plain_scalar(value) for value in plain]
    kinds: set[type[Any]] = {type(value) for value in plain}
    if not kinds <= _EXACT_PRIMITIVES:
        raise ValueError(f"the list in attribute {key!r} must hold str, bool, int or float")
    if kinds == {int, float}:
        return [float(value) for value in plain]
    if len(kinds) > 1:
        raise ValueError(f"the list in attribute {key!r} mixes types")
    return plain


class _AttributesSchema:
    """Marks a dict field as span attributes: checked by a loop, dumped as it is."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        any_dict = core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema())
        return core_schema.no_info_after_validator_function(_checked_attributes, any_dict)


if TYPE_CHECKING:
    AttributesField = Attributes
else:
    AttributesField = Annotated[Attributes, _AttributesSchema]


def plain_attributes(source: Mapping[str, Any] | None) -> Attributes:
    """A fresh dict of attributes from OpenTelemetry's mapping; nothing in it makes it fail.

    Sequences become lists, bytes their hex digits, None is left out, and what no attribute can
    hold (a mapping, a mixed list) its JSON text: one odd value must not cost the span.
    """
    if not source:
        return {}
    plain: Attributes = {}
    for key, value in source.items():
        if type(value) not in _EXACT_PRIMITIVES:
            value = plain_scalar(value)
        if type(value) in _EXACT_PRIMITIVES:
            plain[str(key)] = value
        elif value is not None:
            plain[str(key)] = _plain_value(str(key), value)
    return plain


def _plain_value(key: str, value: Any) -> AttributeValue:
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, (list, tuple)):
        try:
            return _checked_list(key, cast(Sequence[Any], value))
        except ValueError:
            pass
    return json.dumps(json_value(value))


def json_value(value: Any) -> Any:
    """``value`` in JSON's types: enums by name, mappings and sequences inside, else ``str``."""
    if value is None or type(value) in _EXACT_PRIMITIVES:
        return value
    if isinstance(value, Enum):
        return value.name
    value = plain_scalar(value)
    if value is None or type(value) in _EXACT_PRIMITIVES:
        return value
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_value(item) for item in cast(Iterable[Any], value)]
    return str(value)


def extra_fields(source: Any, taken: frozenset[str]) -> dict[str, Any]:
    """What the OpenTelemetry object carries beyond the modelled fields, in JSON's types.

    Leading underscores are dropped; a name in ``taken`` is skipped.
    """
    extras: dict[str, Any] = {}
    for name, value in getattr(source, "__dict__", {}).items():
        key = name.lstrip("_")
        if key and key not in taken and value is not None:
            extras[key] = json_value(value)
    return extras


class SpanPart(BaseModel):
    """Base of the parts: keeps unknown fields, and NaN as NaN (a reward may be one)."""

    model_config = ConfigDict(extra="allow", ser_json_inf_nan="constants")

    @classmethod
    def _extras(cls, source: Any) -> dict[str, Any]:
        # The SDK's own classes hold modelled fields only: taken names are worked out for the rest.
        if all(name.lstrip("_") in cls.model_fields for name in getattr(source, "__dict__", ())):
            return {}
        return extra_fields(source, frozenset(dir(cls)) | frozenset(cls.model_fields))


class SpanContext(SpanPart):
    """The identity of a span: ``trace_id`` is 32 and ``span_id`` 16 lowercase hex digits."""

    trace_id: str
    span_id: str
    is_remote: bool
    trace_state: TraceState

    @classmethod
    def from_opentelemetry(cls, src: Any) -> "SpanContext":
        return cls(
            trace_id=f"{src.trace_id:032x}",
            span_id=f"{src.span_id:016x}",
            is_remote=src.is_remote,
            trace_state=dict(src.trace_state or {}),
            **cls._extras(src),
        )


class TraceStatus(SpanPart):
    """Whether the operation a span stands for went well."""

    status_code: StatusCode
    description: str | None = None

    @classmethod
    def from_opentelemetry(cls, src: Any) -> "TraceStatus":
        if src is None:
            return cls(status_code="UNSET")
        return cls(
            status_code=src.status_code.name,
            description=src.description,
            **cls._extras(src),
        )


class Event(SpanPart):
    """Something that happened at one moment of a span; ``timestamp`` in seconds."""

    name: str
    attributes: AttributesField
    timestamp: float | None = None

    @classmethod
    def from_opentelemetry(cls, src: Any) -> "Event":
        return cls(
            name=src.name,
            attributes=plain_attributes(src.attributes),
            timestamp=convert_timestamp(src.timestamp),
            **cls._extras(src),
        )


class Link(SpanPart):
    """A pointer from one span to another one, possibly of another trace."""

    context: SpanContext
    attributes: AttributesField | None = None

    @classmethod
    def from_opentelemetry(cls, src: Any) -> "Link":
        return cls(
            context=SpanContext.from_opentelemetry(src.context),
            attributes=plain_attributes(src.attributes) or None,
            **cls._extras(src),
        )


class OtelResource(BaseModel):
    """Who produced a span: service name, SDK, process."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    attributes: AttributesField
    schema_url: str

    @classmethod
    def from_opentelemetry(cls, src: Any) -> "OtelResource":
        attributes = plain_attributes(getattr(src, "attributes", None))
        return cls(attributes=attributes, schema_url=getattr(src, "schema_url", None) or "")


class SpanCoreFields(BaseModel):
    """What a span says before it is bound to a rollout; times in seconds, None while unknown."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    name: str
    status: TraceStatus
    attributes: AttributesField
    start_time: float | None
    end_time: float | None


@runtime_checkable
class SpanRecordingContext(Protocol):
    """What code inside an open span may tell it."""

    def record_exception(self, exception: BaseException) -> None:
        """Add the exception as an event; does not set the status."""
        ...

    def record_attributes(self, attributes: Attributes) -> None:
        """Add attributes; a key that is there already is overwritten."""
        ...

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        """Set the status; the last call counts."""
        ...

    def get_recorded_span(self) -> SpanCoreFields:
        """The span as recorded so far."""
        ...


class SpanNames(str, Enum):
    """Deprecated: names of spans and resource attributes; use :mod:`agentlightning.semconv`."""

    REWARD = "agentlightning.reward"
    MESSAGE = "agentlightning.message"
    OBJECT = "agentlightning.object"
    EXCEPTION = "agentlightning.exception"
    VIRTUAL = "agentlightning.virtual"
    ROLLOUT_ID = "agentlightning.rollout_id"
    ATTEMPT_ID = "agentlightning.attempt_id"
    SPAN_SEQUENCE_ID = "agentlightning.span_sequence_id"


class SpanAttributeNames(str, Enum):
    """Deprecated: attribute names of early emitters; use :mod:`agentlightning.semconv`."""

    MESSAGE = "message"
    OBJECT = "object"


# Inner machinery of the SDK's span objects: means nothing once the span has ended.
_SDK_INTERNALS = frozenset(
    (
        "instrumentation_info",
        "instrumentation_scope",
        "limits",
        "lock",
        "record_exception",
        "sampler",
        "set_status_on_exception",
        "span_processor",
        "trace_config",
        "tracer_metrics",
        "record_end_metrics",
    )
)


class Span(BaseModel):
    """One operation, bound to a rollout and an attempt. Unknown fields are kept.

    ``sequence_id`` orders the spans of a rollout over all its attempts, from 1, whatever the
    clocks say; several spans may share one. ``trace_id`` is 32 and ``span_id`` and ``parent_id``
    16 hex digits. Times are Unix seconds. (rollout_id, attempt_id, span_id) is the identity of
    a span: storing it twice stores it once. Fields that may be None have no default, so that a
    missing key shows as an error and not as an empty field.
    """

    model_config = ConfigDict(extra="allow", ser_json_inf_nan="constants")

    rollout_id: str
    attempt_id: str
    sequence_id: int
    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    status: TraceStatus
    attributes: AttributesField
    events: list[Event]
    links: list[Link]
    start_time: float | None
    end_time: float | None
    context: SpanContext | None
    parent: SpanContext | None
    resource: OtelResource

    def __str__(self) -> str:
        """What a person wants to see of it; ``repr`` has every field."""
        return f"Span(name={self.name!r}, attributes={self.attributes!r})"

    @classmethod
    def from_opentelemetry(cls, src: "ReadableSpan", rollout_id: str, attempt_id: str, sequence_id: int) -> "Span":
        """Copy an ended OpenTelemetry span; nothing of ``src`` is shared with the result.

        Any object that reads like one will do: a name, and a context as attribute or by ``get_span_context()``; what
        else it lacks stays empty. A span without a context gets ids of zeros. Besides the modelled fields the result has
        ``kind`` (its name, e.g. ``"CLIENT"``), ``instrumentation_scope`` ({name, version}) where
        ``src`` has one, and whatever else the object carries, in JSON's types.
        """
        context = _context_of(src)
        parent = getattr(src, "parent", None)
        return cls(
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=sequence_id,
            trace_id=f"{context.trace_id:032x}" if context else "0" * 32,
            span_id=f"{context.span_id:016x}" if context else "0" * 16,
            parent_id=f"{parent.span_id:016x}" if parent else None,
            name=src.name,
            status=TraceStatus.from_opentelemetry(getattr(src, "status", None)),
            attributes=plain_attributes(getattr(src, "attributes", None)),
            events=[Event.from_opentelemetry(event) for event in getattr(src, "events", None) or ()],
            links=[Link.from_opentelemetry(link) for link in getattr(src, "links", None) or ()],
            start_time=convert_timestamp(getattr(src, "start_time", None)),
            end_time=convert_timestamp(getattr(src, "end_time", None)),
            context=SpanContext.from_opentelemetry(context) if context else None,
            parent=SpanContext.from_opentelemetry(parent) if parent else None,
            resource=OtelResource.from_opentelemetry(getattr(src, "resource", None)),
            **_otel_extras(src),
        )

    @classmethod
    def from_attributes(
        cls,
        *,
        attributes: Attributes,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
        sequence_id: int | None = None,
        name: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        parent_id: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        resource: OtelResource | None = None,
        status: TraceStatus | None = None,
    ) -> "Span":
        """A span that no tracer recorded.

        Left out: ids are random, rollout and attempt ``""``, sequence 0, the name
        ``agentlightning.virtual``, the status OK, the resource empty, the times None.
        Raises pydantic's ValidationError (a ValueError) for attributes no span can hold.
        """
        trace_id = trace_id or ids.trace_id()
        span_id = span_id or ids.span_id()
        return cls(
            rollout_id=rollout_id or "",
            attempt_id=attempt_id or "",
            sequence_id=sequence_id or 0,
            trace_id=trace_id,
            span_id=span_id,
            parent_id=parent_id,
            name=name or AGL_VIRTUAL,
            status=status or TraceStatus(status_code="OK"),
            attributes=attributes,
            events=[],
            links=[],
            start_time=start_time,
            end_time=end_time,
            context=_local_context(trace_id, span_id),
            parent=_local_context(trace_id, parent_id) if parent_id else None,
            resource=resource or OtelResource(attributes={}, schema_url=""),
        )

    @classmethod
    def from_core_fields(
        cls,
        core: SpanCoreFields,
        *,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
        sequence_id: int | None = None,
    ) -> "Span":
        """A root span of a trace of its own; without a start time it starts now."""
        return cls.from_attributes(
            attributes=core.attributes,
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=sequence_id,
            name=core.name,
            start_time=time.time() if core.start_time is None else core.start_time,
            end_time=core.end_time,
            status=core.status,
        )


_TAKEN = frozenset(dir(Span)) | frozenset(Span.model_fields) | _SDK_INTERNALS

SpanLike = ReadableSpan | Span


class ReceivedSpan(Span):
    """A span that was decoded for one call: nobody else holds it, so a store may keep it without a copy."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        """The API describes it as a span."""
        return handler(Span.__pydantic_core_schema__)


def reads_like_a_span(value: Any) -> bool:
    """Whether :meth:`Span.from_opentelemetry` can take it: it has a name and a context in one of the two forms."""
    return hasattr(value, "name") and (hasattr(value, "get_span_context") or hasattr(value, "context"))


def _context_of(src: Any) -> Any:
    """The API of OpenTelemetry has the method, its SDK both."""
    method = getattr(src, "get_span_context", None)
    return method() if callable(method) else src.context


def _local_context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(trace_id=trace_id, span_id=span_id, is_remote=False, trace_state={})


def _otel_extras(src: Any) -> dict[str, Any]:
    extras = extra_fields(src, _TAKEN)
    scope = getattr(src, "instrumentation_scope", None)
    if scope is not None:
        extras["instrumentation_scope"] = {"name": scope.name, "version": scope.version}
    return extras
