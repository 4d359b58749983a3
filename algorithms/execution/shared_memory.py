"""SharedMemoryExecutionStrategy: the algorithm and its runners in one process, each in a thread with its own event loop."""

from __future__ import annotations

import logging
import threading
import time
from typing import Literal

from ...core.errors import InvalidInput
from ...core.loop_thread import LoopTask, first_error
from ...core.model.store_interface import LightningStore
from ...runners.stop_events import InterruptHandler, ThreadingEvent
from .base import (
    AlgorithmBundle,
    ExecutionStrategy,
    RunnerBundle,
    ends_with_runners,
    report_failure,
    seconds_or_more,
    whole_number,
)
from .env_vars import LightningEnvVar, resolve_bool_env_var

__all__ = ["SharedMemoryExecutionStrategy"]

_log = logging.getLogger(__name__)
HURRIED_SECONDS = 0.5
"""How long what was cancelled by a second Ctrl+C may take to tell the store."""


class SharedMemoryExecutionStrategy(ExecutionStrategy):
    """``"shm"``: daemon threads of this process. When the algorithm ends, so do the runners.

    Args:
        n_runners: threads that run the agent.
        main_thread: what stays in the caller's thread; ``runner`` needs ``n_runners`` 1. None: the runner where there
            is one, else the algorithm.
        join_timeout: seconds to wait for a thread that was cancelled and given its time.
        graceful_delay: seconds that what runs may take when the run stops, and then, cancelled, again.
        poll_interval: seconds between looks at the threads.
        managed_store: wrap a store that is not thread-safe; None reads AGL_MANAGED_STORE, else True.
    """

    alias = "shm"
    own_runners = True

    def __init__(
        self,
        n_runners: int = 1,
        main_thread: Literal["algorithm", "runner"] | None = None,
        join_timeout: float = 15.0,
        graceful_delay: float = 5.0,
        poll_interval: float = 0.05,
        managed_store: bool | None = None,
    ) -> None:
        main_thread = main_thread or ("runner" if n_runners == 1 else "algorithm")
        if main_thread not in ("algorithm", "runner"):
            raise InvalidInput("main_thread must be 'algorithm' or 'runner'")
        whole_number("n_runners", n_runners, 1)
        for name, seconds in (("join_timeout", join_timeout), ("graceful_delay", graceful_delay)):
            seconds_or_more(name, seconds)
        if not poll_interval > 0:
            raise InvalidInput(f"poll_interval must be a number of seconds, more than 0, and not {poll_interval!r}")
        if main_thread == "runner" and n_runners != 1:
            raise InvalidInput("main_thread='runner' requires n_runners to be 1")
        self.n_runners = n_runners
        self.main_thread: Literal["algorithm", "runner"] = main_thread
        self.join_timeout = join_timeout
        self.graceful_delay = graceful_delay
        self.poll_interval = poll_interval
        self.managed_store = resolve_bool_env_var(LightningEnvVar.AGL_MANAGED_STORE, managed_store, True)

    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore) -> None:
        """See the class. What a side raises stops both and is raised here, the algorithm's first."""
        _log.info(
            "Starting shared-memory execution with %d runner(s) [main_thread=%s]", self.n_runners, self.main_thread
        )
        _Execution(self, algorithm, runner, self._shared(store)).run()

    def _shared(self, store: LightningStore) -> LightningStore:
        from ...projections.store.store import EventLogStore
        from ...rest.server.delegating_store import LightningStoreThreaded

        # Ours is safe whatever it says; a wrapper would only hide its log from the runners.
        safe = isinstance(store, EventLogStore) or store.capabilities.get("thread_safe", False)
        return LightningStoreThreaded(store) if self.managed_store and not safe else store


class _Execution:
    """One call of `execute`."""

    def __init__(
        self,
        strategy: SharedMemoryExecutionStrategy,
        algorithm: AlgorithmBundle,
        runner: RunnerBundle,
        store: LightningStore,
    ) -> None:
        self._strategy = strategy
        self._event = ThreadingEvent()
        self._hurry = threading.Event()
        self._given_up = threading.Event()
        event = self._event
        self._bundle = algorithm
        self._alone = ends_with_runners(algorithm)
        self._algorithm = LoopTask("algorithm", lambda: algorithm(store, event), self._ended)
        self._runners = [
            LoopTask(f"runner-{number}", lambda number=number: runner(store, number, event), self._ended)
            for number in range(strategy.n_runners or 1)
        ]
        self._parts = [self._algorithm, *self._runners]

    def run(self) -> None:
        strategy = self._strategy
        main = self._algorithm if strategy.main_thread == "algorithm" else self._runners[0]
        with InterruptHandler(self._event.set, self._at_once, strategy.graceful_delay):
            for part in self._parts:
                if part is not main:
                    part.start()
            threading.Thread(target=self._stop_when_asked, name="agl-stopper", daemon=True).start()
            main.run()
            # A runner that has done all its rollouts waits for the algorithm.
            while not self._algorithm.done.wait(strategy.poll_interval) and not self._given_up.is_set():
                pass
            self._event.set()
            self._join()
        error = first_error(self._parts)
        if error is not None:
            raise error

    def _ended(self, part: LoopTask) -> None:
        """In the thread of a part that has ended: the run stops with the algorithm, and with every error."""
        if part is self._algorithm or part.error is not None:
            if part.error is not None and not self._event.is_set():
                report_failure(self._bundle)
            self._event.set()
        elif not self._event.is_set() and all(runner.done.is_set() for runner in self._runners):
            if self._alone:
                self._event.set()
            else:
                _log.warning("All runners have done their max_rollouts; the algorithm goes on without them.")

    def _at_once(self) -> None:
        self._event.set()
        self._hurry.set()

    def _stop_when_asked(self) -> None:
        """Grace, then cancellation, then grace again; after that what still runs is given up."""
        grace = self._strategy.graceful_delay
        self._event.wait()
        self._wait_for_parts(grace)
        for part in self._parts:
            if not part.done.is_set():
                part.cancel()
        self._wait_for_parts(grace, HURRIED_SECONDS)
        self._given_up.set()

    def _wait_for_parts(self, seconds: float, hurried_seconds: float = 0.0) -> None:
        end = time.monotonic() + seconds
        hurried = False
        while time.monotonic() < end and not all(part.done.is_set() for part in self._parts):
            if self._hurry.is_set() and not hurried:
                hurried, end = True, min(end, time.monotonic() + hurried_seconds)
            time.sleep(self._strategy.poll_interval)

    def _join(self) -> None:
        end = time.monotonic() + 2 * self._strategy.graceful_delay + self._strategy.join_timeout
        for part in self._parts:
            while not part.done.wait(self._strategy.poll_interval):
                if self._given_up.is_set() or time.monotonic() > end:
                    _log.warning("%s did not end in time and is left behind.", part.name)
                    break
