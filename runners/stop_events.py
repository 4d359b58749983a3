"""The flags that ask the two sides of a run to stop, and the signals that set them: Ctrl+C and SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from types import FrameType, TracebackType
from typing import Any, Protocol

__all__ = [
    "CombinedEvent",
    "ExecutionEvent",
    "InterruptHandler",
    "MultiprocessingEvent",
    "StopSignal",
    "ThreadingEvent",
    "until_set",
]

_log = logging.getLogger(__name__)
LOOK_SECONDS = 0.05
AT_ONCE_SECONDS = 2.5
"""How long after a second Ctrl+C the process may still live."""
INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of a program that SIGINT or SIGTERM has ended, as a shell counts them."""


class StopSignal(Protocol):
    """Whether to stop, for a runner, such as ``threading.Event``."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


class ExecutionEvent(StopSignal, Protocol):
    """A flag that asks both sides of a run to stop."""

    def set(self) -> None:
        """Ask to stop."""
        ...

    def clear(self) -> None:
        """Clear it."""
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
        """Clear it."""
        self._event.clear()

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, for at most so many seconds; whether it is."""
        return self._event.wait(timeout)


class CombinedEvent:
    """Set as soon as one of two events is; ``set`` sets the second, a new one where none is given."""

    def __init__(self, first: StopSignal | None, second: ExecutionEvent | None = None) -> None:
        self._first = first
        self._second = second or ThreadingEvent()

    def set(self) -> None:
        """Ask to stop."""
        self._second.set()

    def clear(self) -> None:
        """Clear the second event."""
        self._second.clear()

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._second.is_set() or (self._first is not None and self._first.is_set())

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
        """Clear it."""
        self._event.clear()

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, for at most so many seconds; whether it is."""
        return self._event.wait(timeout)


async def until_set(event: StopSignal, timeout_seconds: float = math.inf) -> bool:
    """Return once ``event`` is set, or after so many seconds, without blocking the event loop; whether it is set."""
    end = time.monotonic() + timeout_seconds
    while not event.is_set() and (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(LOOK_SECONDS, left))
    return event.is_set()


class InterruptHandler:
    """Handles Ctrl+C and SIGTERM while the block runs: the first asks to stop, a second one ends at once.

    A handler that the program has set for SIGTERM stays. Outside the main thread nothing is taken over.

    Args:
        stop: called by the first signal; it must not block.
        hurry: called by the second signal. 2.5 s later, or at a third signal, the process ends, and
            after SIGTERM the block ends with SystemExit. None, for commands, which return
            `exit_code`: the operating system ends the process at a Ctrl+C that follows the first signal.
        grace_seconds: how long running work may take after the first; for the log line, which a command omits.
    """

    def __init__(
        self, stop: Callable[[], None], hurry: Callable[[], None] | None = None, grace_seconds: float | None = None
    ) -> None:
        self._stop = stop
        self._hurry = hurry
        self._grace_seconds = grace_seconds
        self._before: dict[int, Any] = {}
        self._caught: list[int] = []
        self._over = threading.Event()

    @property
    def count(self) -> int:
        """How many signals came."""
        return len(self._caught)

    @property
    def exit_code(self) -> int:
        """What a command returns: 130 where Ctrl+C ended it, else 0."""
        return INTERRUPTED if self._caught[:1] == [signal.SIGINT] else 0

    def __enter__(self) -> InterruptHandler:
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._handle)
            if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._hurry is not None and signal.SIGTERM in self._caught and error is None:
            raise SystemExit(TERMINATED)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._caught.append(number)
        if self.count == 1:
            if self._grace_seconds is not None:
                _log.warning(
                    "Stopping: no more work is taken; what runs has %g s. Press Ctrl+C again to end at once.",
                    self._grace_seconds,
                )
            if self._hurry is None:
                # A handler in Python would wait until the event loop of the main thread wakes up, which may be never.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            self._stop()
        elif self._hurry is not None and self.count == 2:
            _log.warning("Ending at once; the store hands the running rollouts to other runners.")
            self._hurry()
            threading.Thread(target=self._end, name="agl-end", daemon=True).start()
        elif self._hurry is not None:
            os._exit(INTERRUPTED)  # the log survives this

    def _end(self) -> None:
        if not self._over.wait(AT_ONCE_SECONDS):
            os._exit(INTERRUPTED)
