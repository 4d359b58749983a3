"""What a tracer is: something that records the spans of an attempt while the agent runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import Any, TypeVar

from ...core.model.hooks import ParallelWorkerBase
from ...core.model.span import Attributes, Span, SpanCoreFields, SpanRecordingContext, TraceStatus
from ...core.model.store_interface import LightningStore

__all__ = ["Tracer"]

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
