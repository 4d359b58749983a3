"""A span: one traced operation of one attempt, in the form it is stored and sent."""

import time
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from .. import ids
from .semconv import AGL_VIRTUAL
from .span_fields import (
    Attributes,
    AttributesField,
    AttributeValue,
    Event,
    Link,
    OtelResource,
    SpanAttributeNames,
    SpanContext,
    SpanCoreFields,
    SpanNames,
    SpanRecordingContext,
    StatusCode,
    TraceState,
    TraceStatus,
    convert_timestamp,
    extra_fields,
    plain_attributes,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
else:
    # At run time any object with the attributes of an OpenTelemetry span will do.
    ReadableSpan = Any

__all__ = [
    "AttributeValue",
    "Attributes",
    "Event",
    "Link",
    "OtelResource",
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
