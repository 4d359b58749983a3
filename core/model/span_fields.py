"""The parts a span is made of: attributes, status, context, events, links and resource.

Every part converts from its OpenTelemetry counterpart with ``from_opentelemetry``. The source
is read by attribute name only, so OpenTelemetry itself is never imported here.
"""

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

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from .scalars import plain_scalar

__all__ = [
    "AttributeValue",
    "Attributes",
    "Event",
    "Link",
    "OtelResource",
    "SpanAttributeNames",
    "SpanContext",
    "SpanCoreFields",
    "SpanNames",
    "SpanRecordingContext",
    "StatusCode",
    "TraceState",
    "TraceStatus",
    "convert_timestamp",
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
