"""The pool of a fit: worker processes that each run the runners' side of it on a store."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...core.loop_thread import LoopTask
from ...runners.pool.process import (
    CANCEL,
    DONE,
    EXIT_PERMANENT,
    EXIT_STUCK,
    FAILED,
    LOADED,
    STOP,
    Job,
    WorkerContext,
    serve_agent,
)
from ...runners.pool.supervisor import TERMINATE, Supervisor, WorkerProcess
from .base import ManagedRunner, RunnerBundle

__all__ = ["CountingPool", "RunnerPool", "ending", "leave_stuck", "report_execution"]

_log = logging.getLogger(__name__)
BEGINS, ENDS = "begins", "ends"
"""From the child, each with the id of the rollout that it executes."""


class CountingPool(Supervisor):
    """Processes that execute ``most`` rollouts each, None for no limit, counted over all processes of a worker.

    Their jobs say which rollout begins and ends (:func:`report_execution`).
    """

    def __init__(
        self, job: Job, count: int, most: int | None, ended: Callable[[], None], start_method: str | None
    ) -> None:
        self._left: dict[int, int | None] = dict.fromkeys(range(count), most)
        self._running: dict[int, dict[str, None]] = {number: {} for number in range(count)}
        super().__init__(job, count, ended, start_method, at_once=_processors())

    def left(self, worker: WorkerProcess) -> int | None:
        """How many rollouts are left for the next process of this worker."""
        return self._left[worker.number]

    def name_of(self, number: int) -> str:
        return f"runner-{number}"

    def on_message(self, worker: WorkerProcess, what: str, text: str) -> None:
        running, left = self._running[worker.number], self._left[worker.number]
        if what == BEGINS:
            running[text] = None
            self._left[worker.number] = None if left is None else left - 1
        elif what == ENDS:
            running.pop(text, None)

    def on_end(self, worker: WorkerProcess, code: int | None) -> None:
        running, self._running[worker.number] = list(self._running[worker.number]), {}
        if running and code not in (0, EXIT_STUCK) and not self._stopping.is_set():
            _log.error(
                "%s ended with %s while it executed rollout %s; the store hands it out again when it misses the worker.",
                worker.name,
                ending(code),
                ", ".join(running),
            )
        worker.done = worker.done or self._left[worker.number] == 0


class RunnerPool(CountingPool):
    """``count`` processes that run ``bundle`` on ``store``, which has to be picklable.

    Args:
        ended, start_method: see :class:`Supervisor`.
        prefix: what the workers' names in the store begin with; None: they are called by their numbers.
    """

    def __init__(
        self,
        bundle: RunnerBundle,
        count: int,
        store: Any,
        start_method: str | None,
        ended: Callable[[], None],
        prefix: str | None = None,
    ) -> None:
        self._given = Given(store, prefix)
        most = getattr(bundle.make, "max_rollouts", None) if isinstance(bundle, ManagedRunner) else None
        super().__init__(RunnerJob(bundle), count, most, ended, start_method)

    def stop(self, grace_seconds: float, step_seconds: float, hurry: threading.Event) -> list[int | None]:
        """Ask, cancel, terminate, kill, with a pause after each; returns what :meth:`Supervisor.end` does."""
        return self.end([(STOP, grace_seconds), (CANCEL, step_seconds), (TERMINATE, step_seconds)], step_seconds, hurry)

    def given(self, worker: WorkerProcess) -> Given:
        return replace(self._given, left=self.left(worker))

    def on_replace(self, worker: WorkerProcess, code: int | None) -> None:
        _log.warning("%s ended with exit code %s; another process takes its place.", worker.name, code)

    def on_failed_end(self, worker: WorkerProcess, code: int) -> None:
        _log.warning("%s ended with exit code %s while the run was closing.", worker.name, code)

    def on_fork(self, why: str) -> None:
        _log.warning("Runners are forked: %s.", why)

    def not_forked(self, why: str) -> str:
        return f"Runners cannot be started: {why}. Define the agent in a module, or use strategy='shm'."


def ending(code: int | None) -> str:
    """How a process ended: an exit code, which only os._exit in an agent gives so early, or a signal."""
    if code is None or code >= 0:
        return f"exit code {code}, as by os._exit() in the agent"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"


@dataclass(frozen=True)
class Given:
    """What a process is given beside the bundle: the store, the prefix of its name there, how many rollouts are left."""

    store: Any
    prefix: str | None
    left: int | None = None


@dataclass(frozen=True)
class RunnerJob(Job):
    """Runs a runner bundle in an event loop of its own."""

    bundle: RunnerBundle

    def work(self, worker: WorkerContext) -> int:
        """See :class:`Job`."""
        agent = self.bundle.agent if isinstance(self.bundle, ManagedRunner) else None
        return serve_agent(agent, lambda: self._serve(worker))

    def _serve(self, worker: WorkerContext) -> int:
        """What the bundle raises is reported as permanent: another process would raise it again."""
        bundle, given = self.bundle, worker.given
        if isinstance(bundle, ManagedRunner):
            bundle.on_stuck = leave_stuck
            bundle.max_rollouts = given.left
            bundle.on_execute = partial(report_execution, worker)
            bundle.on_ready = partial(worker.send, LOADED)
            bundle.worker_name = f"{given.prefix}-{os.getpid()}-{secrets.token_hex(3)}" if given.prefix else None
        else:
            worker.send(LOADED)  # a bundle without these members does not report when it has loaded everything
        part = LoopTask(f"runner-{worker.number}", lambda: _on_store(bundle, worker))
        worker.on_cancel(part.cancel)
        part.run()
        if part.error is not None:
            _log.error("Runner %d failed.", worker.number, exc_info=part.error)
            worker.send(FAILED, f"{type(part.error).__name__}: {part.error}")
            return EXIT_PERMANENT
        if isinstance(bundle, ManagedRunner) and bundle.given_up and not worker.stop.is_set():
            return EXIT_STUCK
        worker.send(DONE)
        return 0


def _processors() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, len(affinity(0)) if affinity is not None else os.cpu_count() or 1)


def report_execution(worker: WorkerContext, rollout_id: str, begins: bool) -> None:
    """Report that an attempt of this rollout begins, or has ended."""
    worker.send(BEGINS if begins else ENDS, rollout_id)


def leave_stuck(prefix: str) -> None:
    """End this process at once, in the middle of an agent that lets nothing else run; the supervisor starts another."""
    _log.error("%s The agent is past its time limit and blocks the event loop; its process is replaced.", prefix)
    os._exit(EXIT_STUCK)


def _on_store(bundle: Any, worker: WorkerContext) -> Awaitable[None]:
    async def run() -> None:
        store = worker.given.store
        try:
            await bundle(store, worker.number, worker.stop)
        finally:
            close: Callable[[], Any] | None = getattr(store, "close", None)
            if close is not None and asyncio.iscoroutinefunction(close):
                await close()

    return run()
