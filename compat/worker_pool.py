"""The pool of the first generation: worker processes that run an agent on the tasks of a server at a URL."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..algorithms.adapters.triplets import TracerTraceToTriplet
from ..core.credentials import mask_text
from ..core.errors import InvalidInput
from ..runners.agent.decorators import as_agent
from ..runners.pool.process import (
    DONE,
    EXIT_STUCK,
    STOP,
    Job,
    WorkerContext,
    exit_if_importing,
    exit_process,
    serve_agent,
)
from ..runners.pool.supervisor import MOST_FAILED_STARTS, WATCH_SECONDS, Supervisor, WorkerProcess
from ..runners.stop_events import InterruptHandler, StopSignal
from ..runners.tracing.agentops import AgentOpsTracer
from ..runners.tracing.base import Tracer
from .client import AgentLightningClient, DevTaskLoader
from .runner import LegacyAgentRunner

__all__ = ["fit_v0"]

_log = logging.getLogger("agentlightning.trainer")

GRACE_SECONDS = 10.0
"""How long a worker may go on with its task after Ctrl+C."""
HASTY_SECONDS = 5.0
"""A worker that ends sooner after its start has not worked: a failed start."""
TASK_DONE = "task done"
"""The message of a worker after every task."""


def fit_v0(
    agent: Any,
    backend: str | AgentLightningClient,
    *,
    n_workers: int = 1,
    max_tasks: int | None = None,
    tracer: Tracer | None = None,
    adapter: Any = None,
    daemon: bool = True,
    token: str | None = None,
) -> None:
    """Run `agent` on the tasks of the server at `backend` until `max_tasks` a worker, or Ctrl+C; returns after both.

    One worker runs in this process, more are processes of their own, spawned, or forked where the agent cannot be pickled
    or the script has no ``if __name__ == "__main__"``. One that dies is replaced, and
    its task is given to another one; AgentLightningError when they end again and again before they work. `backend` may be a
    client too, such as a `DevTaskLoader`, of which each worker process has a copy. ValueError for what is no address.
    """
    exit_if_importing()  # as the tutorial's does, whose script calls fit() without a guard
    if n_workers < 1:
        raise InvalidInput(f"n_workers is {n_workers}; it takes 1 or more")
    _log.info("Initializing Trainer...")
    client = _client(backend, token)
    agent = as_agent(agent)
    tracer = tracer if tracer is not None else AgentOpsTracer()
    adapter = adapter if adapter is not None else TracerTraceToTriplet()
    if agent.trained_agents is not None and isinstance(adapter, TracerTraceToTriplet):
        adapter.agent_match = agent.trained_agents
    _log.info(
        "Model calls and rewards are recorded in each worker and posted to %s with its results; no AgentOps server runs.",
        client.endpoint,
    )
    _log.info("Trainer main initialization complete.")
    job = LegacyJob(agent, client, tracer, adapter)
    if n_workers == 1:
        _work_here(job, max_tasks)
        return
    kind = "asynchronous" if agent.is_async() else "synchronous"
    _log.info("Running with n_workers=%d (%s multiprocessing).", n_workers, kind)
    WorkerPool(job, n_workers, max_tasks, daemon).run()


def _client(backend: str | AgentLightningClient, token: str | None) -> AgentLightningClient:
    if isinstance(backend, AgentLightningClient):
        return backend
    if not isinstance(backend, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"backend is the address of a server or a client, not {backend!r:.200}")
    client = AgentLightningClient(backend, token=token)
    _log.info("Initializing AgentLightningClient with endpoint: %s", mask_text(client.endpoint))
    return client


@dataclass(frozen=True)
class LegacyJob(Job):
    """Runs the agent on the server's tasks; a worker is given how many it may take, or None."""

    agent: Any
    client: AgentLightningClient
    tracer: Tracer
    adapter: Any
    pool_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    orphan_seconds = GRACE_SECONDS

    @property
    def serves(self) -> bool:
        """Whether the tasks come from a server, which knows its workers; a list of tasks does not."""
        return not isinstance(self.client, DevTaskLoader)

    def name(self, worker_id: int) -> str:
        """The worker as the server knows it: two machines may each have a worker 0."""
        return f"Worker-{worker_id}-{self.pool_id}"

    def work(self, worker: WorkerContext) -> int:
        """See :class:`Job`."""
        return serve_agent(self.agent, lambda: self._serve(worker))

    def _serve(self, worker: WorkerContext) -> int:
        number = worker.number
        _log.info("[Worker %d] Setting up trainer environment...", number)
        kind = "Async" if self.agent.is_async() else "Sync"
        _log.info("[Worker %d] %s worker process started.", number, kind)
        try:
            self.run(number, worker.given, worker.stop, lambda: worker.send(TASK_DONE), lambda: exit_process(EXIT_STUCK))
        except Exception:
            _log.exception("[Worker %d] Failed.", number)
            return 1
        worker.send(DONE)
        return 0

    def orphaned(self, worker: WorkerContext) -> None:
        """See :class:`Job`."""
        _log.warning("[Worker %d] The trainer is gone.", worker.number)

    def run(
        self,
        worker_id: int,
        max_tasks: int | None,
        stop: StopSignal,
        done: Callable[[], None] | None = None,
        hung: Callable[[], None] | None = None,
    ) -> None:
        """Be a worker of this process; for the arguments see `LegacyAgentRunner`."""
        self.tracer.init()
        self.tracer.init_worker(worker_id)
        try:
            runner = LegacyAgentRunner(
                self.agent,
                self.client,
                self.tracer,
                self.adapter,
                worker_id,
                max_tasks,
                name=self.name(worker_id) if self.serves else None,
                stop=stop,
                done=done,
                hung=hung,
            )
            runner.iter()
        finally:
            self.tracer.teardown_worker(worker_id)
            self.tracer.teardown()


def _work_here(job: LegacyJob, max_tasks: int | None) -> None:
    """The only worker, in this process."""
    stop = threading.Event()

    def hurry() -> None:
        raise KeyboardInterrupt

    with InterruptHandler(stop.set, hurry, GRACE_SECONDS):
        try:
            job.run(0, max_tasks, stop)
        except KeyboardInterrupt:
            _log.warning("The task that ran is handed out again when the server misses it.")


class WorkerPool(Supervisor):
    """Workers that take ``max_tasks`` each, counted over all processes of a worker."""

    def __init__(self, job: LegacyJob, n_workers: int, max_tasks: int | None, daemon: bool) -> None:
        self._legacy = job
        self._left = dict.fromkeys(range(n_workers), max_tasks)
        self._over = threading.Event()
        super().__init__(job, n_workers, self._over.set, daemon=daemon)

    def run(self) -> None:
        """Until every worker is done, or Ctrl+C. AgentLightningError where they cannot work."""
        hurry = threading.Event()
        interrupts = InterruptHandler(self._over.set, hurry.set, GRACE_SECONDS)
        with interrupts:
            try:
                self.start()
                while not self._over.wait(WATCH_SECONDS):
                    pass
            finally:
                self.end([(STOP, GRACE_SECONDS)] if interrupts.count else [], GRACE_SECONDS, hurry)
        if self.failure is not None:
            raise self.failure
        if not interrupts.count:
            _log.info("All %d worker processes have completed.", len(self._left))

    def name_of(self, number: int) -> str:
        return f"AgentLightning-Worker-{number}"

    def given(self, worker: WorkerProcess) -> int | None:
        return self._left[worker.number]

    def on_message(self, worker: WorkerProcess, what: str, text: str) -> None:
        worker.failed_starts = 0
        left = self._left[worker.number]
        if what == TASK_DONE and left is not None:
            self._left[worker.number] = left - 1
            worker.done = worker.done or left == 1

    def is_failed_start(self, worker: WorkerProcess, seconds: float) -> bool:
        return seconds < HASTY_SECONDS

    def on_start(self, worker: WorkerProcess) -> None:
        _log.info("Starting worker process %d...", worker.number)

    def on_end(self, worker: WorkerProcess, code: int | None) -> None:
        _log.info("Worker process %d (%s) joined with exit code %s.", worker.number, worker.name, code)
        if code != 0 and self._legacy.serves:
            given = self._legacy.client.give_back_of(self._legacy.name(worker.number))
            if given is not None:
                _log.warning("Its task %s is handed out again.", given)

    def on_replace(self, worker: WorkerProcess, code: int | None) -> None:
        _log.warning("Starting worker process %d again...", worker.number)

    def on_kill(self, worker: WorkerProcess) -> None:
        _log.warning("Worker process %d is ended in the middle of its task.", worker.number)

    def on_fork(self, why: str) -> None:
        _log.info("%s, so the worker processes are forked.", why)

    def not_forked(self, why: str) -> str:
        return (
            f"{why}, so no worker process can be started: "
            "define the agent in a module, and call fit() under `if __name__ == '__main__':`"
        )

    def given_up(self, worker: WorkerProcess, code: int | None) -> str:
        return (
            f"Worker process {worker.number} ended {MOST_FAILED_STARTS} times within {HASTY_SECONDS:g} s of its start, "
            f"the last time with exit code {code}; no other one is started."
        )
