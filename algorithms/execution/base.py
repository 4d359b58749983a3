"""How the two sides of a run are executed: the interface of strategies, the flags they share, and Ctrl+C."""

from __future__ import annotations

import logging
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Integral
from types import FrameType, TracebackType
from typing import Any, Protocol

from ...core.errors import InvalidInput
from ...core.model.store_interface import LightningStore
from ...runners.stop_events import ExecutionEvent

__all__ = [
    "AlgorithmBundle",
    "ExecutionStrategy",
    "Interrupts",
    "RunnerBundle",
    "seconds_or_more",
    "tell_failure",
    "whole_number",
]

_log = logging.getLogger(__name__)
AT_ONCE_SECONDS = 2.5
"""How long after a second Ctrl+C the process may still live."""
TERMINATED = 143
"""Exit code of a program that SIGTERM has ended, as a shell counts it."""


class AlgorithmBundle(Protocol):
    """The algorithm's side: returns when the run is over, soon after ``event`` is set at the latest."""

    async def __call__(self, store: LightningStore, event: ExecutionEvent) -> None:
        """Run on ``store``."""
        ...


class RunnerBundle(Protocol):
    """One worker's side: executes rollouts of ``store`` until ``event`` is set."""

    async def __call__(self, store: LightningStore, worker_id: int, event: ExecutionEvent) -> None:
        """Run as worker ``worker_id``, counted from 0."""
        ...


class ExecutionStrategy(ABC):
    """Where the algorithm and the runners are executed. ``n_runners`` wins over the trainer's."""

    n_runners: int | None = None
    own_runners = False
    """Whether :meth:`execute` calls the given runner bundle itself, so that the run has runners of its own."""
    needs_store = True
    """Whether :meth:`execute` uses the store that it is given."""

    @abstractmethod
    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore) -> None:
        """Run both sides to the end; raises what either raised. Returns after Ctrl+C too."""


def whole_number(name: str, value: Any, least: int) -> int:
    """An argument that is a whole number; InvalidInput names the argument and what it takes."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidInput(f"{name} must be at least {least}, a whole number, and not {value!r:.100}")
    return int(value)


def seconds_or_more(name: str, value: Any) -> None:
    """Check an argument in seconds; InvalidInput for less than 0 and for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InvalidInput(f"{name} must be a number of seconds, 0 or more, and not {value!r:.100}")


def tell_failure(algorithm: AlgorithmBundle) -> None:
    """Before the stop of a run whose runners cannot work: it is to be closed as failed and not as interrupted."""
    if hasattr(algorithm, "runners_failed"):
        algorithm.runners_failed = True  # pyright: ignore[reportAttributeAccessIssue]


class Interrupts:
    """Ctrl+C while the block runs: the first asks to stop, the second ends at once. Each says so in one line.

    SIGTERM asks to stop too, and ends the program after the block: it leaves the block as SystemExit. A handler that the
    program has set for it stays.

    Args:
        stop: called by the first; it must not block.
        hurry: called by the second. Whatever still runs 2.5 s later ends with the process.
        grace_seconds: how long what runs may take after the first.

    Outside the main thread nothing is taken over.
    """

    def __init__(self, stop: Callable[[], None], hurry: Callable[[], None], grace_seconds: float) -> None:
        self._stop = stop
        self._hurry = hurry
        self._grace_seconds = grace_seconds
        self._before: Any = None
        self._term_before: Any = None
        self._terminated = False
        self._over = threading.Event()
        self.count = 0

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._caught)
            if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                self._term_before = signal.signal(signal.SIGTERM, self._caught)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self._term_before is not None:
            signal.signal(signal.SIGTERM, self._term_before)
        if self._terminated and error is None:
            raise SystemExit(TERMINATED)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._terminated = self._terminated or number == signal.SIGTERM
        self.count += 1
        if self.count == 1:
            _log.warning(
                "Stopping: no more work is taken; what runs has %g s. Press Ctrl+C again to end at once.",
                self._grace_seconds,
            )
            self._stop()
        elif self.count == 2:
            _log.warning("Ending at once; the store gives what ran to others.")
            self._hurry()
            threading.Thread(target=self._end, name="agl-end", daemon=True).start()
        else:
            os._exit(130)

    def _end(self) -> None:
        if not self._over.wait(AT_ONCE_SECONDS):
            os._exit(130)
