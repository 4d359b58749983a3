"""Tracer: records the spans of an attempt while the agent runs; the active one of a context; and one that stores nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from ...core.errors import InvalidInput, message_of
from ...core.model.hooks import ParallelWorkerBase
from ...core.model.span import Attributes, Span, SpanCoreFields, SpanRecordingContext, StatusCode, TraceStatus
from ...core.model.store_interface import LightningStore
from ...core.spans.attributes import format_exception_attributes, sanitize_attributes

if TYPE_CHECKING:
    from ..worker.base import Runner

__all__ = ["CURRENT_RUNNER", "DummyTracer", "Tracer", "clear_active_tracer", "get_active_tracer", "set_active_tracer"]

_ACTIVE: ContextVar[Tracer | None] = ContextVar("agentlightning_active_tracer", default=None)
CURRENT_RUNNER: ContextVar[tuple[Any, Runner[Any]] | None] = ContextVar("agentlightning_current_runner", default=None)
"""The agent of the attempt of this context, and the runner that executes it."""


def set_active_tracer(tracer: Tracer) -> None:
    """Make ``tracer`` the one that emitters of this context use; ValueError when there is one already."""
    if _ACTIVE.get() is not None:
        raise InvalidInput("An active tracer is already set. Cannot set a new one.")
    _ACTIVE.set(tracer)


def get_active_tracer() -> Tracer | None:
    """The tracer of this context; None outside of a trace."""
    return _ACTIVE.get()


def clear_active_tracer() -> None:
    """Forget the tracer of this context; does nothing without one."""
    _ACTIVE.set(None)


R = TypeVar("R")

_log = logging.getLogger(__name__)


class Tracer(ParallelWorkerBase):
    """Base of all tracers; a concrete one overrides the methods that raise here.

    ``init`` and ``init_worker`` come before the first trace, ``teardown_worker`` and
    ``teardown`` after the last one. One tracer may hold several traces at the same time, as
    long as each runs in a context (task or thread) of its own.
    """

    def init_worker(self, worker_id: int, store: LightningStore | None = None, *args: Any, **kwargs: Any) -> None:
        """Set up in a worker; spans of attempts go to ``store``."""
        super().init_worker(worker_id)

    def trace_context(
        self,
        name: str | None = None,
        *,
        store: LightningStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> AbstractAsyncContextManager[Any]:
        """Record what happens inside; with both ids the spans are stored, all of them before it exits.

        The ids come together or not at all (ValueError). ``store`` overrides that of the worker.
        """
        raise NotImplementedError(f"{type(self).__name__} records no traces")

    def get_last_trace(self) -> list[Span]:
        """The spans of the most recent trace of this context, in the order in which they ended."""
        raise NotImplementedError(f"{type(self).__name__} records no traces")

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        """Record a span that starts and ends at ``timestamp`` (Unix seconds; now when None)."""
        raise NotImplementedError(f"{type(self).__name__} creates no spans")

    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> AbstractContextManager[SpanRecordingContext]:
        """Record a span around a block; an exception inside is recorded and goes on."""
        raise NotImplementedError(f"{type(self).__name__} records no operations")

    def trace_run(self, func: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Deprecated: run ``func`` inside a trace named after it; not inside a running event loop."""

        async def run() -> R:
            async with self.trace_context(name=getattr(func, "__name__", "trace_run")):
                return func(*args, **kwargs)

        return asyncio.run(run())

    async def trace_run_async(self, func: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        """Deprecated: await ``func`` inside a trace named after it."""
        async with self.trace_context(name=getattr(func, "__name__", "trace_run_async")):
            return await func(*args, **kwargs)

    def get_langchain_handler(self, tags: list[str] | None = None) -> Any:
        """A callback handler for LangChain; None where the tracer has none."""
        _log.warning("%s has no LangChain handler.", type(self).__name__)
        return None

    @contextmanager
    def lifespan(self, store: LightningStore | None = None) -> Generator[None, None, None]:
        """Set up, run the block, tear down: for scripts that trace without a runner."""
        self.init()
        try:
            self.init_worker(0, store)
            try:
                yield
            finally:
                self.teardown_worker(0)
        finally:
            self.teardown()


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
