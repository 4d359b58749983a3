"""One side of a run in an event loop of its own, in the caller's thread or in one that may be given up."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Part", "first_error", "to_the_end"]

_log = logging.getLogger(__name__)
WAIT_SECONDS = 0.05
"""Waiting in slices lets Ctrl+C through on every platform."""


class Part:
    """Runs ``make()``, a coroutine, once; ``ended`` is called afterwards in its thread.

    After the end ``error`` has what it raised; a cancellation by :meth:`cancel` is no error.
    """

    def __init__(self, name: str, make: Callable[[], Awaitable[None]], ended: Callable[[Part], None]) -> None:
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
        """Run in a daemon thread: a part that cannot be stopped does not keep the process."""
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


def to_the_end(name: str, make: Callable[[], Awaitable[Any]]) -> None:
    """Run a coroutine to its end and raise what it raises; also where this thread has a running event loop."""
    part = Part(name, make, lambda ended: None)
    part.run()
    if part.error is not None:
        raise part.error


def first_error(parts: list[Part]) -> BaseException | None:
    """What the first of these raised; None where all is well."""
    errors: list[Any] = [part.error for part in parts if part.error is not None]
    return errors[0] if errors else None
