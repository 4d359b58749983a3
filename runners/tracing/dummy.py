"""DummyTracer: makes spans in memory and stores none, for emitters that shall not propagate."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from ...core.errors import message_of
from ...core.model.span import Attributes, SpanCoreFields, SpanRecordingContext, StatusCode, TraceStatus
from ...core.spans.attributes import format_exception_attributes, sanitize_attributes
from .base import Tracer

__all__ = ["DummyTracer"]


class DummyTracer(Tracer):
    """Has no traces: what it makes is returned and nowhere else."""

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        moment = time.time() if timestamp is None else timestamp
        return SpanCoreFields(
            name=name,
            status=status or TraceStatus(status_code="OK"),
            attributes=dict(attributes or {}),
            start_time=moment,
            end_time=moment,
        )

    @contextmanager
    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> Generator[SpanRecordingContext, None, None]:
        context = _MemoryContext(name, attributes or {}, time.time() if start_time is None else start_time)
        try:
            yield context
        except BaseException as error:
            context.record_exception(error)
            context.record_status("ERROR", message_of(error))
            raise
        finally:
            context.end(time.time() if end_time is None else end_time)


class _MemoryContext:
    """The recording context of a span that lives in memory only."""

    def __init__(self, name: str, attributes: Attributes, start_time: float) -> None:
        self._span = SpanCoreFields(
            name=name,
            status=TraceStatus(status_code="OK"),
            attributes=dict(attributes),
            start_time=start_time,
            end_time=None,
        )

    def end(self, moment: float) -> None:
        self._span.end_time = moment

    def record_exception(self, exception: BaseException) -> None:
        self._span.attributes.update(format_exception_attributes(exception))

    def record_attributes(self, attributes: Attributes) -> None:
        self._span.attributes.update(sanitize_attributes(attributes))

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        self._span.status = TraceStatus(status_code=status_code, description=description)

    def get_recorded_span(self) -> SpanCoreFields:
        return self._span.model_copy(deep=True)
