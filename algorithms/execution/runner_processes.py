"""Runners of an agent on the store at an address: one in this process, or several processes that are replaced when they end."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ...core.errors import AgentLightningError, HistoryChanged
from ...core.model.hooks import Hook
from ...core.model.store_interface import LightningStore
from ...runners.agent.litagent import LitAgent
from ...runners.agent.loading import load_agent, run_agent
from ...runners.pool.process import (
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
from ...runners.pool.supervisor import TERMINATE, WorkerProcess
from ...runners.stop_events import ThreadingEvent, until_set
from .runner_pool import CountingPool, leave_stuck, report_execution

__all__ = ["RunnerOptions", "run_runner", "run_runner_processes"]

GRACE_SECONDS = 10.0
LONGEST_HOST = 40
IDLE_SECONDS = 1.0
"""Twice as long as a runner needs to notice a stop request while it waits for work."""
OnStopping = Callable[[bool], None]
"""Called when the end was requested, with whether a rollout is being executed."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunnerOptions:
    """How one process runs.

    `url`: of a store (http://, sqlite:///) or its Kafka, `token` for the former, `environment` for the secrets of the latter.
    `worker_id`: number of the first worker; None: host and process id name it. `group`: the consumer group on Kafka.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    worker_id: int | None = None
    max_rollouts: int | None = None
    slots: int = 1
    group: str = "runners"
    environment: Mapping[str, str] | None = field(default=None, repr=False)


async def run_runner(
    agent: LitAgent[Any],
    options: RunnerOptions,
    stop: ThreadingEvent,
    on_stopping: OnStopping | None = None,
    worker: WorkerContext | None = None,
) -> int:
    """One runner in this process, which has a ``worker`` where it is one of several; returns the exit code."""
    busy = Busy()
    async with _opened(options) as store:
        work = asyncio.ensure_future(
            run_agent(
                agent,
                store,
                worker_id=os.getpid() if options.worker_id is None else options.worker_id,
                worker_name=_worker_name() if options.worker_id is None else None,
                on_stuck=leave_stuck if worker is not None else None,
                on_execute=None if worker is None else partial(report_execution, worker),
                on_ready=None if worker is None else partial(worker.send, LOADED),
                max_rollouts=options.max_rollouts,
                event=stop,
                hooks=[busy],
                slots=options.slots,
                group=options.group,
            )
        )
        stopped = asyncio.ensure_future(until_set(stop))
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set() and on_stopping is not None:
                on_stopping(busy.now)
            given_up = await _finish(work, busy)
        finally:
            stopped.cancel()
    if given_up:
        _log.warning("%d agent(s) did not end in time and were given up.", given_up)
    return EXIT_STUCK if given_up and worker is not None and not stop.is_set() else 0


def _worker_name() -> str:
    """Host, process and a random part: process ids repeat among containers, and host names among machines."""
    host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())[:LONGEST_HOST]
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


@asynccontextmanager
async def _opened(options: RunnerOptions) -> AsyncGenerator[LightningStore, None]:
    """The store: a client that waits for it where it serves, else one of this process over the log itself."""
    if options.url.startswith("http"):  # what the other kind needs is not loaded: it is half of the start of a process
        from ...rest.client.client import LightningStoreClient

        client = LightningStoreClient(options.url, token=options.token, patience_seconds=math.inf)
        try:
            yield client
        finally:
            await client.close()
        return
    from ...projections.store.store import EventLogStore
    from ...rest.open_store import open_store

    store = await asyncio.to_thread(open_store, options.url, environment=options.environment)
    assert isinstance(store, EventLogStore)
    try:
        yield store
    finally:
        await store.end()


class Busy(Hook):
    """Whether a rollout is being executed. The end of one may be reported without its start, where that failed."""

    def __init__(self) -> None:
        self._running: set[tuple[str, str]] = set()

    @property
    def now(self) -> bool:
        """True while a rollout runs."""
        return bool(self._running)

    async def on_rollout_start(self, *, agent: Any, runner: Any, rollout: Any) -> None:
        self._running.add((rollout.rollout_id, rollout.attempt.attempt_id))

    async def on_rollout_end(self, *, agent: Any, runner: Any, rollout: Any, spans: Any) -> None:
        self._running.discard((rollout.rollout_id, rollout.attempt.attempt_id))


async def _finish(work: asyncio.Future[int], busy: Busy) -> int:
    """Wait for the runner to end; how many agents it gave up.

    One that was asked to end and only waits, perhaps for a store that does not answer, is cancelled.
    """
    while True:
        # Twice: a rollout may have been claimed just before its hook is called.
        was_busy = busy.now
        await asyncio.wait({work}, timeout=IDLE_SECONDS)
        if work.done():
            return work.result()
        if not was_busy and not busy.now:
            work.cancel()
            try:
                await work
            except asyncio.CancelledError:
                return 0


@dataclass(frozen=True)
class AgentJob(Job):
    """What each process does; it is given a worker's number, or None, and what is left of its rollouts."""

    agent: str
    options: RunnerOptions

    stops_on_sigterm = True

    def work(self, worker: WorkerContext) -> int:
        """See :class:`Job`; the agent is loaded in the main thread too."""
        try:
            agent = load_agent(self.agent)
        except AgentLightningError as error:
            worker.send(FAILED, error.message)
            return EXIT_PERMANENT
        return serve_agent(agent, lambda: self._serve(worker, agent))

    def _serve(self, worker: WorkerContext, agent: LitAgent[Any]) -> int:
        worker_id, left = worker.given
        options = replace(self.options, worker_id=worker_id, max_rollouts=left)
        try:
            code = asyncio.run(run_runner(agent, options, worker.stop, worker=worker))
        except AgentLightningError as error:
            if error.retryable or isinstance(error, HistoryChanged):
                _log.error("%s", error.message)
                return 1
            worker.send(FAILED, error.message)
            return EXIT_PERMANENT
        if code == 0:
            worker.send(DONE)
        return code


class AgentPool(CountingPool):
    """The processes. One that ends by itself with code 0 has done its rollouts and stays away."""

    def __init__(self, job: AgentJob, processes: int, ended: Callable[[], None]) -> None:
        self._first = job.options.worker_id
        super().__init__(job, processes, job.options.max_rollouts, ended, "spawn")

    def given(self, worker: WorkerProcess) -> tuple[int | None, int | None]:
        return None if self._first is None else self._first + worker.number, self.left(worker)

    def on_replace(self, worker: WorkerProcess, code: int | None) -> None:
        after = f" in {worker.pause_seconds:g} s" if worker.pause_seconds else ""
        _log.warning("A runner process ended with code %s; another takes its place%s", code, after)


async def run_runner_processes(
    agent: str, options: RunnerOptions, processes: int, stop: ThreadingEvent, on_stopping: OnStopping | None = None
) -> None:
    """Run ``processes`` of them until all have finished or ``stop`` is set; raises why where one cannot work."""
    over = ThreadingEvent()
    pool = AgentPool(AgentJob(agent, options), processes, over.set)
    waits = [asyncio.ensure_future(until_set(one)) for one in (stop, over)]
    try:
        await asyncio.to_thread(pool.start)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set() and on_stopping is not None:
            on_stopping(True)
    finally:
        for wait in waits:
            wait.cancel()
        # After a signal a second signal ends all processes, so there is no time limit; otherwise the processes are terminated.
        steps = [(STOP, math.inf)] if stop.is_set() else [(STOP, GRACE_SECONDS), (TERMINATE, GRACE_SECONDS)]
        await asyncio.to_thread(pool.end, steps, GRACE_SECONDS, threading.Event())
    if pool.failure is not None:
        raise pool.failure
