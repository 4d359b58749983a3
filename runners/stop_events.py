"""The flags that ask the two sides of a run to stop: among threads, among processes, and either of two."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from multiprocessing.context import BaseContext
from typing import Protocol

__all__ = ["Either", "ExecutionEvent", "MultiprocessingEvent", "StopSignal", "ThreadingEvent", "until_set"]

LOOK_SECONDS = 0.05


class StopSignal(Protocol):
    """What a runner asks whether it is to stop, such as ``threading.Event``."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


class ExecutionEvent(StopSignal, Protocol):
    """A flag that asks both sides of a run to stop."""

    def set(self) -> None:
        """Ask to stop."""
        ...

    def clear(self) -> None:
        """Take it back."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, for at most so many seconds; whether it is."""
        ...


class ThreadingEvent:
    """An :class:`ExecutionEvent` among threads."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask to stop."""
        self._event.set()

    def clear(self) -> None:
        """Take it back."""
        self._event.clear()

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, for at most so many seconds; whether it is."""
        return self._event.wait(timeout)


class Either:
    """Set as soon as one of two events is; ``set`` sets the second."""

    def __init__(self, first: ExecutionEvent, second: ExecutionEvent) -> None:
        self._first = first
        self._second = second

    def set(self) -> None:
        """Ask to stop."""
        self._second.set()

    def clear(self) -> None:
        """Take it back, as far as it is the second's."""
        self._second.clear()

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._first.is_set() or self._second.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until one is set, for at most so many seconds; whether it is."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (end is None or time.monotonic() < end):
            self._second.wait(LOOK_SECONDS if end is None else max(0.0, min(LOOK_SECONDS, end - time.monotonic())))
        return self.is_set()


class MultiprocessingEvent:
    """An :class:`ExecutionEvent` among processes that are given it when they start.

    A process that is killed while it looks at the flag may leave it locked; the strategies of this package use a pipe
    to each process instead.
    """

    def __init__(self, *, ctx: BaseContext | None = None) -> None:
        self._event = (ctx or multiprocessing.get_context()).Event()

    def set(self) -> None:
        """Ask to stop."""
        self._event.set()

    def clear(self) -> None:
        """Take it back."""
        self._event.clear()

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, for at most so many seconds; whether it is."""
        return self._event.wait(timeout)


async def until_set(event: ExecutionEvent) -> None:
    """Return once ``event`` is set, without blocking the event loop."""
    while not event.is_set():
        await asyncio.sleep(LOOK_SECONDS)
