"""The crew of the first generation: worker processes that run an agent on the tasks of a server at a URL."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ..core.errors import AgentLightningError, InvalidInput
from ..core.loglines import setup_logging
from ..projections.rest.dev_tasks import DevTaskLoader
from ..projections.rest.legacy_client import AgentLightningClient
from ..runners.agentops_tracer import AgentOpsTracer
from ..runners.decorators import as_agent
from ..runners.legacy_runner import LegacyAgentRunner
from ..runners.tracer import Tracer
from .adapters.triplets import TracerTraceToTriplet
from .carrying import carried
from .execution import Interrupts
from .worker_process import UNGUARDED

__all__ = ["fit_v0"]

_log = logging.getLogger("agentlightning.trainer")

GRACE_SECONDS = 10.0
"""How long a worker may go on with its task once Ctrl+C was pressed."""
LOOK_SECONDS = 0.25
HUNG = 5
"""Exit code of a worker whose agent does not return."""
HASTY_SECONDS = 5.0
"""A worker that dies sooner after its start has not worked; so many of them in a row, and no more are started."""
HASTY_DEATHS = 5


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

    One worker runs in this process, more are processes of their own, spawned, or forked where the script has no
    ``if __name__ == "__main__"``. One that dies is replaced, and
    its task is given to another one; AgentLightningError when none of them lives long enough to work. `backend` may be a
    client too, such as a `DevTaskLoader`, of which each worker process has a copy. ValueError for what is no address.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A worker process imports the script that started it, and came here: the script calls fit() without asking for
        # __name__ == "__main__", as the tutorial's does. Its parent has to start workers in another way.
        os._exit(UNGUARDED)
    if n_workers < 1:
        raise InvalidInput(f"n_workers is {n_workers}; it takes 1 or more")
    _log.info("Initializing Trainer...")
    client = _client(backend, token)
    agent = as_agent(agent)
    tracer = tracer if tracer is not None else AgentOpsTracer()
    adapter = adapter if adapter is not None else TracerTraceToTriplet()
    if agent.trained_agents is not None and hasattr(adapter, "agent_match"):
        adapter.agent_match = agent.trained_agents
    _log.info(
        "Model calls and rewards are recorded in each worker and posted to %s with its results; no AgentOps server runs.",
        client.endpoint,
    )
    _log.info("Trainer main initialization complete.")
    job = _Job(agent, client, tracer, adapter, max_tasks)
    if n_workers == 1:
        _work_here(job)
        return
    kind = "asynchronous" if agent.is_async() else "synchronous"
    _log.info("Running with n_workers=%d (%s multiprocessing).", n_workers, kind)
    _Crew(job, n_workers, daemon).run()


def _client(backend: str | AgentLightningClient, token: str | None) -> AgentLightningClient:
    if isinstance(backend, AgentLightningClient):
        return backend
    if not isinstance(backend, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"backend is the address of a server or a client, not {backend!r:.200}")
    client = AgentLightningClient(backend, token=token)
    _log.info("Initializing AgentLightningClient with endpoint: %s", client.endpoint)
    return client


def _level() -> int | None:
    """What workers are to log, where this process has set logging up; what others configure does not reach them."""
    base = logging.getLogger("agentlightning")
    return base.getEffectiveLevel() if base.handlers else None


@dataclass
class _Job:
    """What a worker needs to know; it is pickled for worker processes."""

    agent: Any
    client: AgentLightningClient
    tracer: Tracer
    adapter: Any
    max_tasks: int | None
    crew: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def name(self, worker_id: int) -> str:
        """The worker as the server knows it: two machines may each have a worker 0."""
        return f"Worker-{worker_id}-{self.crew}"


def _work_here(job: _Job) -> None:
    """The only worker, in this process."""
    stop = threading.Event()

    def hurry() -> None:
        raise KeyboardInterrupt

    with Interrupts(stop.set, hurry, GRACE_SECONDS):
        try:
            _work(job, 0, stop)
        except KeyboardInterrupt:
            _log.warning("The task that ran is handed out again when the server misses it.")


def _work(job: _Job, worker_id: int, stop: threading.Event, done: Any = None, hung: Any = None) -> None:
    job.tracer.init()
    job.tracer.init_worker(worker_id)
    name = None if isinstance(job.client, DevTaskLoader) else job.name(worker_id)
    try:
        runner = LegacyAgentRunner(
            job.agent,
            job.client,
            job.tracer,
            job.adapter,
            worker_id,
            job.max_tasks,
            name=name,
            stop=stop,
            done=done,
            hung=hung,
        )
        runner.iter()
    finally:
        job.tracer.teardown_worker(worker_id)
        job.tracer.teardown()


def _worker_main(level: int | None, job_carried: bytes, worker_id: int, parent: Connection) -> None:
    """A worker process, until it has done its tasks, is asked to stop, or has no parent any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches every process of a terminal; the parent decides
    if level is not None:
        setup_logging(level)
    job: _Job = pickle.loads(job_carried)
    stop = threading.Event()

    threading.Thread(target=_listen, args=(parent, stop, worker_id, os.getppid()), name="agl-parent", daemon=True).start()
    _log.info("[Worker %d] Setting up trainer environment...", worker_id)
    kind = "Async" if job.agent.is_async() else "Sync"
    _log.info("[Worker %d] %s worker process started.", worker_id, kind)
    try:
        _work(job, worker_id, stop, lambda: _tell(parent), lambda: _leave(HUNG))
    except Exception:
        _log.exception("[Worker %d] Failed.", worker_id)
        _leave(1)
    _leave(0)


def _leave(code: int) -> None:
    """End this process now: threads that agents left behind would keep it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            _log.debug("an output could not be flushed: %s", error)
    logging.shutdown()
    os._exit(code)


def _listen(parent: Connection, stop: threading.Event, worker_id: int, parent_pid: int) -> None:
    """Stop when the parent says so; where it is gone, end soon."""
    try:
        # A forked process holds the other end too, and so sees no end of the file.
        while not parent.poll(LOOK_SECONDS):
            if os.getppid() != parent_pid:
                raise EOFError("another parent")
        parent.recv_bytes()
    except (EOFError, OSError) as error:
        _log.warning("[Worker %d] The trainer is gone (%s).", worker_id, type(error).__name__)
        stop.set()
        time.sleep(GRACE_SECONDS)
        os._exit(1)
    stop.set()


def _tell(parent: Connection) -> None:
    try:
        parent.send_bytes(b"1")
    except OSError as error:
        _log.debug("nobody counts the tasks any more: %s", error)


@dataclass
class _Member:
    """A worker of the crew and the process that is it now."""

    worker_id: int
    process: BaseProcess
    pipe: Connection
    began: float
    left: int | None
    hasty: int = 0


class _Crew:
    """Starts the workers, replaces those that die, and stops them."""

    def __init__(self, job: _Job, n_workers: int, daemon: bool) -> None:
        self._job = job
        self._daemon = daemon
        self._count = n_workers
        self._members: list[_Member] = []
        self._stopping_since: float | None = None
        self._hurried = False
        self._context: Any = multiprocessing.get_context("spawn")

    def run(self) -> None:
        """Until every worker is done."""
        with Interrupts(self._stop, self._hurry, GRACE_SECONDS):
            try:
                for worker_id in range(self._count):
                    _log.info("Starting worker process %d...", worker_id)
                    self._members.append(self._started(worker_id, self._job.max_tasks))
                while self._members:
                    self._turn()
            finally:
                self._kill()
        if self._stopping_since is None:
            _log.info("All %d worker processes have completed.", self._count)

    def _stop(self) -> None:
        self._stopping_since = time.monotonic()
        for member in self._members:
            try:
                member.pipe.send_bytes(b"stop")
            except OSError as error:
                _log.debug("worker %d is gone already: %s", member.worker_id, error)

    def _hurry(self) -> None:
        self._hurried = True

    def _started(self, worker_id: int, left: int | None) -> _Member:
        ours, theirs = self._context.Pipe(duplex=True)
        job = self._job if left is None else replace(self._job, max_tasks=left)
        process = self._context.Process(
            target=_worker_main,
            args=(_level(), carried(job), worker_id, theirs),
            name=f"AgentLightning-Worker-{worker_id}",
            daemon=self._daemon,
        )
        with _deaf():
            process.start()
        theirs.close()
        return _Member(worker_id, process, ours, time.monotonic(), left)

    def _turn(self) -> None:
        """Wait for news of the workers: tasks done, processes ended."""
        waited: list[Any] = [member.process.sentinel for member in self._members]
        waited += [member.pipe for member in self._members if not member.pipe.closed]
        ready = wait(waited, 0.2)
        for member in self._members:
            if member.pipe in ready:
                self._count_done(member)
        for member in list(self._members):
            if not member.process.is_alive():
                self._ended(member)
        since = self._stopping_since
        if since is not None and (self._hurried or time.monotonic() - since > GRACE_SECONDS):
            self._kill()

    def _count_done(self, member: _Member) -> None:
        try:
            while member.pipe.poll():
                member.pipe.recv_bytes()
                member.hasty = 0
                if member.left is not None:
                    member.left -= 1
        except (EOFError, OSError):
            member.pipe.close()  # the process ended; its sentinel says so too

    def _ended(self, member: _Member) -> None:
        process = member.process
        process.join()
        self._count_done(member) if not member.pipe.closed else None
        member.pipe.close()
        self._members.remove(member)
        code = process.exitcode
        if code == UNGUARDED and self._stopping_since is None:
            self._fork_from_now_on()
            self._members.append(self._started(member.worker_id, member.left))
            return
        _log.info("Worker process %d (%s) joined with exit code %s.", member.worker_id, process.name, code)
        if code == 0:
            return
        if not isinstance(self._job.client, DevTaskLoader):
            given = self._job.client.give_back_of(self._job.name(member.worker_id))
            if given is not None:
                _log.warning("Its task %s is handed out again.", given)
        if self._stopping_since is not None or member.left == 0:
            return
        hasty = member.hasty + 1 if time.monotonic() - member.began < HASTY_SECONDS else 0
        if hasty >= HASTY_DEATHS:
            raise AgentLightningError(
                f"Worker process {member.worker_id} ended {hasty} times within {HASTY_SECONDS:g} s of its start, "
                f"the last time with exit code {code}; no other one is started."
            )
        _log.warning("Starting worker process %d again...", member.worker_id)
        successor = self._started(member.worker_id, member.left)
        successor.hasty = hasty
        self._members.append(successor)

    def _fork_from_now_on(self) -> None:
        if self._context.get_start_method() == "fork":
            return
        why = "fit() is called outside `if __name__ == '__main__':`"
        # On macOS the system's own libraries do not survive it.
        if sys.platform == "darwin" or "fork" not in multiprocessing.get_all_start_methods():
            raise InvalidInput(f"{why}, so no worker process can be started: put the call under that line")
        _log.info("%s, so the worker processes are forked.", why)
        self._context = multiprocessing.get_context("fork")

    def _kill(self) -> None:
        """End what still runs. The server gives its tasks to others when it misses the heartbeats."""
        for member in self._members:
            if member.process.is_alive():
                _log.warning("Worker process %d is ended in the middle of its task.", member.worker_id)
                member.process.kill()
        for member in self._members:
            member.process.join()


@contextmanager
def _deaf() -> Generator[None, None, None]:
    """While a process starts: it inherits that it ignores Ctrl+C, so none comes before it can say so itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
