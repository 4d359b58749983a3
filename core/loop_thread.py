"""Event loops in threads of their own: for one coroutine that runs to its end, or for calls from other threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from .errors import LogClosed, StorageError

__all__ = ["LoopTask", "LoopThread", "first_error", "run_to_end"]

T = TypeVar("T")

_log = logging.getLogger(__name__)
WAIT_SECONDS = 0.05
"""Waiting in slices lets Ctrl+C through on every platform."""


class LoopTask:
    """Runs ``make()``, a coroutine, once in a loop of its own; ``ended`` is called afterwards in its thread.

    After the end ``error`` has what it raised; a cancellation by :meth:`cancel` is no error.
    """

    def __init__(self, name: str, make: Callable[[], Awaitable[None]], ended: Callable[[LoopTask], None] | None = None) -> None:
        self.name = name
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._make = make
        self._ended = ended
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._guard = threading.Lock()

    def start(self) -> None:
        """Run in a daemon thread: one that cannot be stopped does not keep the process."""
        threading.Thread(target=self._run, name=self.name, daemon=True).start()

    def run(self) -> None:
        """Run to the end, in this thread; in another one where this thread has a running event loop, as in a notebook."""
        if not _loop_runs_here():
            self._run()
            return
        self.start()
        while not self.done.wait(WAIT_SECONDS):
            pass

    def _run(self) -> None:
        loop = asyncio.new_event_loop()
        try:
            asyncio.set_event_loop(loop)
            task = loop.create_task(self._body())
            with self._guard:
                self._loop, self._task = loop, task
                if self._cancelled:
                    task.cancel()
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            if not self._cancelled:
                self.error = RuntimeError(f"{self.name} was cancelled from inside")
        except BaseException as error:
            self.error = error
        finally:
            with self._guard:
                self._loop = None
            self._close(loop)
            self.done.set()
            if self._ended is not None:
                self._ended(self)

    async def _body(self) -> None:
        await self._make()

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=1.0))
            loop.run_until_complete(loop.shutdown_asyncgens())
        except Exception as error:
            _log.debug("%s: its event loop did not close well: %s", self.name, error)
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def cancel(self) -> None:
        """Cancel the coroutine; from any thread, also before it began."""
        with self._guard:
            if self._cancelled:
                return
            self._cancelled = True
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run_to_end(name: str, make: Callable[[], Awaitable[Any]]) -> None:
    """Run a coroutine to its end and raise what it raises; also where this thread has a running event loop."""
    task = LoopTask(name, make)
    task.run()
    if task.error is not None:
        raise task.error


def first_error(tasks: list[LoopTask]) -> BaseException | None:
    """What the first of these raised; None where all is well."""
    errors: list[Any] = [task.error for task in tasks if task.error is not None]
    return errors[0] if errors else None


class LoopThread:
    """Runs coroutines for threads that block until they are done, such as all clients of one Kafka log."""

    def __init__(self, name: str) -> None:
        started = threading.Event()
        self._task = LoopTask(name, lambda: self._serve(started))
        self._task.start()
        started.wait()

    async def _serve(self, started: threading.Event) -> None:
        self.loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._thread_id = threading.get_ident()
        started.set()
        await self._stopped.wait()

    @property
    def inside(self) -> bool:
        """Whether the caller is the loop's own thread, which must not wait for itself."""
        return threading.get_ident() == self._thread_id and not self._task.done.is_set()

    def call(self, coroutine: Coroutine[Any, Any, T], timeout_seconds: float | None = None) -> T:
        """Run to the end and return the result. Raises `StorageError` when time is up, `LogClosed` after `stop`."""
        if self.inside:
            coroutine.close()
            raise RuntimeError("a blocking call of the log was made from the log's own thread")
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise LogClosed("the log was closed") from None
        try:
            return future.result(timeout_seconds)
        except CancelledError:
            raise LogClosed("the log was closed") from None
        except FutureTimeout:
            if future.done():
                raise
            future.cancel()
            raise StorageError(f"the broker did not answer within {timeout_seconds} s") from None

    def stop(self) -> None:
        """Cancel what runs, so that who waits for it gets `LogClosed`, and wait for the thread. Idempotent."""
        try:
            self.loop.call_soon_threadsafe(self._stopped.set)
        except RuntimeError:
            return
        if not self.inside:
            self._task.done.wait(10)
