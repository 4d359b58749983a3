"""OtelTracer: records an attempt through OpenTelemetry and has it stored before the attempt ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ...core.errors import InvalidInput, message_of
from ...core.model.span import (
    Attributes,
    Span,
    SpanCoreFields,
    SpanRecordingContext,
    StatusCode,
    TraceStatus,
    convert_timestamp,
)
from ...core.model.store_interface import LightningStore
from ...core.spans.attributes import format_exception_attributes, sanitize_attributes
from .base import Tracer, clear_active_tracer, set_active_tracer
from .openai_patch import instrument_all
from .span_buffer import CURRENT_BUFFER, SpanBuffer

if TYPE_CHECKING:
    from opentelemetry import trace

__all__ = ["OtelTracer"]

_log = logging.getLogger(__name__)
_NANOSECONDS = 1_000_000_000
CANCELLED_SECONDS = 5.0
"""How long the spans of a cancelled attempt may take to be stored."""
# Read by the instrumentation: record prompts and answers whatever the environment variables are.
_CONTENT_KEY = "override_enable_content_tracing"


class OtelTracer(Tracer):
    """Records OpenAI calls, emitted spans and whatever else goes through OpenTelemetry.

    Several traces may be open at once, each in a task or thread of its own: a span belongs to
    the attempt in whose context it started. Spans reach the store in batches while the agent
    runs, in the order in which they end, and all of them before the trace closes.

    Args:
        instrument_managed: patch the OpenAI client when the worker starts.
    """

    session_span = False
    """Whether each attempt gets a root span ``<rollout_id>.session``."""

    def __init__(self, *, instrument_managed: bool = True) -> None:
        super().__init__()
        self._instrument_managed = instrument_managed
        self._store: LightningStore | None = None
        self._ready = False
        self._last: SpanBuffer | None = None
        self._last_here: ContextVar[SpanBuffer | None] = ContextVar("agentlightning_last_recording", default=None)

    def init_worker(self, worker_id: int, store: LightningStore | None = None, *args: Any, **kwargs: Any) -> None:
        """Load OpenTelemetry and the instrumentation, and remember the store."""
        super().init_worker(worker_id, store)
        from .provider import process_provider, watch_global_provider

        self._store = store
        _log.info("[Worker %s] Setting up tracer...", worker_id)
        provider, _ = process_provider()
        watch_global_provider()
        if self._instrument_managed and instrument_all(provider):
            _log.info("[Worker %s] Instrumentation applied.", worker_id)
        self._ready = True

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Forget the store. The patch stays: other tracers of the process may use it."""
        super().teardown_worker(worker_id)
        self._store = None
        self._ready = False

    def trace_context(
        self,
        name: str | None = None,
        *,
        store: LightningStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> AbstractAsyncContextManager[trace.Tracer]:
        """As :meth:`Tracer.trace_context`; yields an OpenTelemetry tracer.

        RuntimeError before ``init_worker``. Without ids the spans are only kept for
        :meth:`get_last_trace`, under ``rollout-dummy`` and ``attempt-dummy``.
        """
        if not self._ready:
            raise RuntimeError("The tracer is not initialized. Call init_worker() first.")
        if (rollout_id is None) != (attempt_id is None):
            raise InvalidInput("rollout_id and attempt_id must be given together")
        target = store or self._store
        if rollout_id is None or attempt_id is None:
            return self._trace(name or "trace", "rollout-dummy", "attempt-dummy", None)
        if target is None:
            raise InvalidInput("A trace of an attempt needs a store; give one to init_worker()")
        return self._trace(name or rollout_id, rollout_id, attempt_id, target)

    @asynccontextmanager
    async def _trace(
        self, name: str, rollout_id: str, attempt_id: str, store: LightningStore | None
    ) -> AsyncGenerator[trace.Tracer, None]:
        from .provider import process_provider, process_tracer

        set_active_tracer(self)
        buffer = SpanBuffer(rollout_id, attempt_id, store)
        token = CURRENT_BUFFER.set(buffer)
        self._last = buffer
        self._last_here.set(buffer)
        processor = process_provider()[1]
        processor.opened(buffer)
        buffer.start()
        limit: float | None = None
        try:
            with self._session(name, buffer):
                yield process_tracer()
        except asyncio.CancelledError:
            # A cancellation must not wait for a store that does not answer.
            limit = CANCELLED_SECONDS
            raise
        finally:
            try:
                processor.closed(buffer)
                await asyncio.wait_for(buffer.close(), limit)
            except asyncio.TimeoutError:
                _log.warning("Spans of %s were lost: the store did not answer.", rollout_id)
            finally:
                CURRENT_BUFFER.reset(token)
                clear_active_tracer()

    @contextmanager
    def _session(self, name: str, buffer: SpanBuffer) -> Generator[None, None, None]:
        from opentelemetry import context as otel_context
        from opentelemetry.trace import set_span_in_context

        from .provider import process_provider, process_tracer

        # A fresh context: the attempt is a trace of its own, whatever span surrounds the runner.
        context = otel_context.set_value(_CONTENT_KEY, True, otel_context.Context())
        span = None
        if self.session_span:
            attributes = {"agentops.span.kind": "session", "operation.name": name}
            span = process_tracer().start_span(f"{name}.session", context=context, attributes=attributes)
            context = set_span_in_context(span, context)
        token = otel_context.attach(context)
        state = "StatusCode.ERROR"
        try:
            yield
            state = "StatusCode.OK"
        finally:
            otel_context.detach(token)
            if span is not None:
                span.set_attribute("agentops.session.end_state", state)
                # What the agent left open ends before its parent.
                process_provider()[1].end_open(buffer, keep=span)
                span.end()

    def get_last_trace(self) -> list[Span]:
        """As :meth:`Tracer.get_last_trace`, with the numbers that the store gave; 0 for a span on its way there."""
        buffer = self._last_here.get() or self._last
        return buffer.all() if buffer is not None else []

    def get_langchain_handler(self, tags: list[str] | None = None) -> Any:
        """A handler that records chains, graph nodes and tools: see :mod:`.langchain_handler`."""
        from .langchain import langchain_handler

        return langchain_handler(tags)

    get_langchain_callback_handler = get_langchain_handler

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        from .provider import process_tracer

        moment = int((time.time() if timestamp is None else timestamp) * _NANOSECONDS)
        span = process_tracer().start_span(name, attributes=attributes, start_time=moment)
        _set_status(span, (status or TraceStatus(status_code="OK")).status_code, status and status.description)
        span.end(end_time=moment)
        return _core_fields(span)

    @contextmanager
    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> Generator[SpanRecordingContext, None, None]:
        """As :meth:`Tracer.operation_context`; spans inside become its children."""
        from opentelemetry import trace

        from .provider import process_tracer

        span = process_tracer().start_span(
            name,
            attributes=attributes,
            start_time=None if start_time is None else int(start_time * _NANOSECONDS),
        )
        context = _OtelRecordingContext(span)
        try:
            # Recorded below, once: OpenTelemetry would add the same event a second time.
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield context
        except BaseException as error:
            context.record_exception(error)
            context.record_status("ERROR", message_of(error))
            raise
        finally:
            span.end(end_time=None if end_time is None else int(end_time * _NANOSECONDS))


class _OtelRecordingContext:
    """The buffer context of an OpenTelemetry span."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def record_exception(self, exception: BaseException) -> None:
        try:
            self._span.record_exception(exception)
        except Exception:
            # OpenTelemetry reads the message, and the exception has none.
            self._span.add_event("exception", format_exception_attributes(exception))

    def record_attributes(self, attributes: Attributes) -> None:
        self._span.set_attributes(sanitize_attributes(attributes))

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        _set_status(self._span, status_code, description)

    def get_recorded_span(self) -> SpanCoreFields:
        return _core_fields(self._span)


def _set_status(span: trace.Span, code: StatusCode, description: str | None) -> None:
    from opentelemetry import trace

    # OpenTelemetry warns about a description of anything but an error.
    span.set_status(trace.Status(trace.StatusCode[code], description if code == "ERROR" else None))


def _core_fields(span: Any) -> SpanCoreFields:
    return SpanCoreFields(
        name=span.name,
        status=TraceStatus.from_opentelemetry(span.status),
        attributes=dict(span.attributes or {}),
        start_time=convert_timestamp(span.start_time),
        end_time=convert_timestamp(span.end_time),
    )
