"""The OpenTelemetry side of tracing: one provider for the process, whose spans find their attempt by context."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread as _threads  # noqa: F401  # pyright: ignore[reportUnusedImport]
import logging
import threading
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from ...core.model.semconv import LightningResourceAttributes
from ...core.model.span import Span
from .call_span import CALL, ModelCall
from .openai_semconv import SPAN_NAMES, normalised
from .span_buffer import CURRENT_BUFFER, SpanBuffer

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace import Span as SdkSpan

__all__ = [
    "LightningSpanProcessor",
    "UnlimitedTracerProvider",
    "get_tracer",
    "get_tracer_provider",
    "process_provider",
    "process_tracer",
    "watch_global_provider",
]

_log = logging.getLogger(__name__)


class LightningSpanProcessor(SpanProcessor):
    """Hands every ended span to the buffer of the context in which it started.

    Spans that start outside of an attempt are ignored.
    """

    def __init__(self) -> None:
        self._buffers: set[SpanBuffer] = set()
        self._watched: weakref.WeakSet[TracerProvider] = weakref.WeakSet()
        self._lock = threading.Lock()

    def opened(self, buffer: SpanBuffer) -> None:
        """A buffer takes spans from now on."""
        with self._lock:
            self._buffers.add(buffer)

    def closed(self, buffer: SpanBuffer) -> None:
        """Ends what the buffer still has open and forgets it."""
        self.end_open(buffer)
        with self._lock:
            self._buffers.discard(buffer)
            buffer.open.clear()

    def end_open(self, buffer: SpanBuffer, keep: trace.Span | None = None) -> None:
        """Ends the spans that the buffer still has open, the newest first, all but ``keep``."""
        with self._lock:
            unfinished = [span for span in buffer.open.values() if span is not keep]
        for span in reversed(unfinished):
            span.end()

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Remember which buffer the span belongs to."""
        buffer = self._current()
        context = span.get_span_context()
        if buffer is not None:
            with self._lock:
                buffer.open[context.span_id] = span

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the ended span, translated, for the store."""
        buffer, live = self._owner(span)
        if buffer is not None:
            # Sequence 0: the store gives the number.
            try:
                stored = Span.from_opentelemetry(span, buffer.rollout_id, buffer.attempt_id, 0)
                call = getattr(live, CALL, None)
                if isinstance(call, ModelCall):  # of an answer that was not read to its end
                    stored.attributes = {**call.attributes(), **stored.attributes}
                stored.resource.attributes = {**stored.resource.attributes, **buffer.resource_attributes}
                spans = normalised(stored) if stored.name in SPAN_NAMES else [stored]
            except Exception as error:
                # It would be raised in the agent's code, where the span ends.
                _log.error("Span %r of %s cannot be recorded: %s", span.name, buffer.rollout_id, error)
            else:
                buffer.add(spans)

    def shutdown(self) -> None:
        """Nothing to release: the tracer closes its buffers."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Always True: spans are stored when their attempt closes."""
        return True

    def watch(self, provider: TracerProvider) -> None:
        """Receive the spans of another provider too; once per provider."""
        with self._lock:
            if provider in self._watched:
                return
            self._watched.add(provider)
        provider.add_span_processor(self)

    def _owner(self, span: ReadableSpan) -> tuple[SpanBuffer | None, Any]:
        """The buffer, and the very span: what is given to us is a copy of it."""
        context = span.context
        if context is None:
            return None, None
        with self._lock:
            for buffer in self._buffers:
                live = buffer.open.pop(context.span_id, None)
                if live is not None:
                    return buffer, live
        return None, None

    def _current(self) -> SpanBuffer | None:
        """The buffer of this context.

        A thread that an agent started without its context has none. Where only one attempt is
        open in this process, such a thread (not the main one, running no event loop) belongs to it.
        """
        buffer = CURRENT_BUFFER.get()
        if buffer is not None:
            return None if buffer.closed else buffer
        if threading.current_thread() is threading.main_thread():
            return None
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            with self._lock:
                return next(iter(self._buffers)) if len(self._buffers) == 1 else None
        return None


class UnlimitedTracerProvider(TracerProvider):
    """A provider whose spans are recorded whole, whatever the ``OTEL_`` environment variables are.

    Those variables are meant for what a program exports. Rewards and prompts are read from these spans: one that is
    sampled away or cut off at 128 attributes changes what is learned.
    """

    def __init__(self, attributes: dict[str, Any]) -> None:
        super().__init__(
            sampler=ALWAYS_ON,
            # Not Resource.create(), which runs the detectors that the environment names.
            resource=Resource(attributes),
            shutdown_on_exit=False,
            span_limits=_unlimited(),
        )
        self._disabled = False  # OTEL_SDK_DISABLED


def _unlimited() -> SpanLimits:
    names = ("attributes", "events", "links", "span_attributes", "event_attributes", "link_attributes")
    lengths = ("attribute_length", "span_attribute_length")
    return SpanLimits(**{f"max_{name}": SpanLimits.UNSET for name in (*names, *lengths)})


@cache
def process_provider() -> tuple[TracerProvider, LightningSpanProcessor]:
    """The provider that all our tracers of this process share, and its processor.

    Shared because the OpenAI client can be patched once only. It exports nothing by itself.
    """
    attributes: dict[str, Any] = {
        "service.name": "agentlightning",
        LightningResourceAttributes.TRACER_NAME.value: "otel",
    }
    provider = UnlimitedTracerProvider(attributes)
    processor = LightningSpanProcessor()
    processor.watch(provider)
    return provider, processor


@cache
def process_tracer() -> trace.Tracer:
    """The tracer for session spans, emitted spans and operations."""
    return process_provider()[0].get_tracer("agentlightning")


def watch_global_provider() -> TracerProvider:
    """Record what agents trace through OpenTelemetry's global functions; the provider whose spans these are.

    An SDK provider that the program installed stays and is watched too. Only where there is
    none does ours become the global one, since nothing else reaches ``trace.get_tracer()``.
    """
    provider, processor = process_provider()
    try:
        current = trace.get_tracer_provider()
    except Exception as error:
        # It is what OTEL_PYTHON_TRACER_PROVIDER names, and OpenTelemetry raises whatever loading that raises.
        _log.warning("Spans of OpenTelemetry's global provider are not recorded; it cannot be loaded: %r", error)
        return provider
    if isinstance(current, TracerProvider):
        processor.watch(current)
        return current
    if isinstance(current, trace.ProxyTracerProvider):
        trace.set_tracer_provider(provider)
    return provider


_log = logging.getLogger(__name__)


def get_tracer_provider(inspect: bool = True) -> TracerProvider:
    """The provider of this process whose spans are recorded: the global one where the program set one up.

    ``inspect`` logs which one it is, at DEBUG.
    """
    provider = watch_global_provider()
    if inspect:
        _log.debug(
            "Spans are recorded from %s with the resource %s", type(provider).__name__, provider.resource.attributes
        )
    return provider


def get_tracer(use_active_span_processor: bool = True) -> trace.Tracer:
    """A tracer whose spans are recorded; with False one whose spans are not recorded."""
    if use_active_span_processor:
        return process_tracer()
    return UnlimitedTracerProvider({}).get_tracer("agentlightning")
