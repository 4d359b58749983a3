"""`agl runner`: executes an agent on the rollouts of a store, in one process or several that are replaced when they die."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import socket
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..algorithms.execution.runner_pool import CountingPool, leave_stuck, report_execution
from ..core.errors import AgentLightningError, HistoryChanged, InvalidInput
from ..core.log.open_log import shown
from ..core.logging_setup import setup_logging
from ..core.model.hooks import Hook
from ..core.model.store_interface import LightningStore
from ..runners.pool.process import (
    DONE,
    EXIT_PERMANENT,
    EXIT_STUCK,
    FAILED,
    LOADED,
    STOP,
    Job,
    WorkerContext,
    exit_process,
)
from ..runners.pool.supervisor import TERMINATE, WorkerProcess
from ..runners.stop_events import InterruptHandler, ThreadingEvent, until_set
from ..runners.worker.agent_call import run_agents_here
from .log_source import refuse_bare_port
from .terminal import announce, echo_json, examples, json_option, log_level_option

if TYPE_CHECKING:
    from ..runners.agent.litagent import LitAgent

DEFAULT_STORE = "http://127.0.0.1:4747"
TOKEN_VARIABLE = "AGL_TOKEN"
GRACE_SECONDS = 10.0
LONGEST_HOST = 40
IDLE_SECONDS = 1.0
"""Twice as long as a runner needs to notice a stop request while it waits for work."""
_STOPPING = "Stopping after the rollouts that run; press Ctrl+C again to end at once."
logger = logging.getLogger(__name__)


@click.command(
    epilog=examples("agl runner app.py:agent -n 4", "agl runner app:agent --store kafka://localhost:9092/dev --slots 8")
)
@click.argument("agent", metavar="MODULE:AGENT")
@click.option("--store", "--log", "url", default=DEFAULT_STORE, show_default=True, metavar="URL",
              help="http://, kafka:// or a file.")  # fmt: skip
@click.option("-n", "--n", "processes", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes.")
@click.option("--slots", type=click.IntRange(1, 1024), default=1, show_default=True, help="Rollouts at a time, each process.")
@click.option("--group", default="runners", show_default=True, help="Consumer group that shares the work (kafka:// only).")
@click.option("--max-rollouts", type=click.IntRange(min=0), help="End each process after so many rollouts.")
@click.option("--token", envvar=TOKEN_VARIABLE, metavar="TOKEN", help="The store's token; also read from AGL_TOKEN.")
@click.option("--worker-id", type=click.IntRange(min=0), help="Number of the first worker; host and process id if left out.")
@log_level_option
@json_option
def runner(
    agent: str,
    url: str,
    processes: int,
    slots: int,
    group: str,
    max_rollouts: int | None,
    token: str | None,
    worker_id: int | None,
    log_level: str,
    as_json: bool,
) -> int:
    """Run an agent on the rollouts of a store, and wait for the store where it is not there yet.

    MODULE:AGENT names a LitAgent, an @rollout function or a plain function: package.module:name or path/to/file.py:name.
    The store is one that serves (http://host:port), a log on Kafka (kafka://host:port/prefix), which any number of
    runners share, or a file that no other process has open (sqlite:///path).
    The first Ctrl+C ends after the rollouts that run; a second one ends at once, and the store gives them to others.
    """
    setup_logging(log_level)
    _check_store(url, processes)
    options = Options(max_rollouts=max_rollouts, slots=slots, group=group)
    loaded = _loaded(agent)  # here also for several processes: a wrong name is one sentence, not one of every process
    stop = ThreadingEvent()
    with InterruptHandler(stop.set) as interrupts:
        if processes > 1:
            done = asyncio.run(_supervise(agent, url, token, worker_id, options, processes, stop))
        else:
            done = asyncio.run(_work(loaded, url, token, worker_id, options, stop))
    done = done or interrupts.exit_code
    if as_json:
        echo_json({"event": "stopped", "exit_code": done})
    return done


@dataclass(frozen=True)
class Options:
    """How one process runs: see the command's options of these names."""

    max_rollouts: int | None
    slots: int
    group: str


def _check_store(url: str, processes: int) -> None:
    """Refuse addresses that so many processes cannot share."""
    refuse_bare_port(url)
    if not url.startswith(("http://", "https://", "kafka://", "sqlite:///")):
        raise InvalidInput(
            f"{shown(url)!r} is not the store of a runner; it looks like http://host:port, kafka://host:9092/prefix or "
            "sqlite:///path"
        )
    if processes > 1 and url.startswith("sqlite:"):
        raise InvalidInput("one process writes a file: use --slots instead of -n, or `agl store` and its http:// address")


def _loaded(agent: str) -> LitAgent[Any]:
    from ..runners.agent.loading import load_agent

    return load_agent(agent)


async def _work(
    agent: LitAgent[Any],
    url: str,
    token: str | None,
    worker_id: int | None,
    options: Options,
    stop: ThreadingEvent,
    worker: WorkerContext | None = None,
) -> int:
    """One runner in this process, which has a ``worker`` where it is one of several; returns the exit code."""
    from ..runners.agent.loading import run_agent

    busy = Busy()
    async with _opened(url, token) as store:
        work = asyncio.ensure_future(
            run_agent(
                agent,
                store,
                worker_id=os.getpid() if worker_id is None else worker_id,
                worker_name=_worker_name() if worker_id is None else None,
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
            if stop.is_set() and worker is None:
                announce(_STOPPING if busy.now else "Stopping.")
            given_up = await _finish(work, busy)
        finally:
            stopped.cancel()
    if given_up:
        logger.warning("%d agent(s) did not end in time and were left behind in their threads.", given_up)
    return EXIT_STUCK if given_up and worker is not None and not stop.is_set() else 0


def _worker_name() -> str:
    """Host, process and a random part: process ids repeat among containers, and host names among machines."""
    host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())[:LONGEST_HOST]
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


@asynccontextmanager
async def _opened(url: str, token: str | None) -> AsyncGenerator[LightningStore, None]:
    """The store: a client that waits for it where it serves, else one of this process over the log itself."""
    if url.startswith("http"):
        from ..rest.client.client import LightningStoreClient

        client = LightningStoreClient(url, token=token, patience_seconds=math.inf)
        try:
            yield client
        finally:
            await client.close()
        return
    from ..projections.store.store import EventLogStore
    from ..rest.open_store import open_store

    store = await asyncio.to_thread(open_store, url, environment=os.environ)
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


# Several processes


@dataclass(frozen=True)
class CommandJob(Job):
    """What each process of `agl runner -n N` does; it is given a worker's number, or None, and what is left of its rollouts."""

    agent: str
    url: str
    token: str | None
    options: Options

    stops_on_sigterm = True

    def work(self, worker: WorkerContext) -> int:
        """See :class:`Job`; agents are loaded and run in the main thread, where signals may be handled."""
        try:
            agent = _loaded(self.agent)
        except AgentLightningError as error:
            worker.send(FAILED, error.message)
            return EXIT_PERMANENT
        if agent.is_async():
            return self._serve(worker, agent)
        return run_agents_here(lambda: self._serve(worker, agent), lambda code: exit_process(code.result()))

    def _serve(self, worker: WorkerContext, agent: LitAgent[Any]) -> int:
        worker_id, left = worker.given
        options = replace(self.options, max_rollouts=left)
        try:
            code = asyncio.run(_work(agent, self.url, self.token, worker_id, options, worker.stop, worker))
        except AgentLightningError as error:
            if error.retryable or isinstance(error, HistoryChanged):
                announce(f"agl: {error.message}")
                return 1
            worker.send(FAILED, error.message)
            return EXIT_PERMANENT
        if code == 0:
            worker.send(DONE)
        return code


class CommandPool(CountingPool):
    """The processes of `agl runner -n N`. One that ends by itself with code 0 has done its rollouts and stays away."""

    def __init__(self, job: CommandJob, processes: int, worker_id: int | None, ended: Callable[[], None]) -> None:
        self._first = worker_id
        super().__init__(job, processes, job.options.max_rollouts, ended, "spawn")

    def given(self, worker: WorkerProcess) -> tuple[int | None, int | None]:
        return None if self._first is None else self._first + worker.number, self.left(worker)

    def on_replace(self, worker: WorkerProcess, code: int | None) -> None:
        after = f" in {worker.pause_seconds:g} s" if worker.pause_seconds else ""
        logger.warning("A runner process ended with code %s; another takes its place%s", code, after)


async def _supervise(
    agent: str,
    url: str,
    token: str | None,
    worker_id: int | None,
    options: Options,
    processes: int,
    stop: ThreadingEvent,
) -> int:
    """Until all have finished, one cannot work, or ``stop`` is set; returns the exit code."""
    over = ThreadingEvent()
    pool = CommandPool(CommandJob(agent, url, token, options), processes, worker_id, over.set)
    waits = [asyncio.ensure_future(until_set(one)) for one in (stop, over)]
    try:
        await asyncio.to_thread(pool.start)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            announce(_STOPPING)
    finally:
        for wait in waits:
            wait.cancel()
        # After a signal a second signal ends all processes, so there is no time limit; otherwise the processes are terminated.
        steps = [(STOP, math.inf)] if stop.is_set() else [(STOP, GRACE_SECONDS), (TERMINATE, GRACE_SECONDS)]
        await asyncio.to_thread(pool.end, steps, GRACE_SECONDS, threading.Event())
    if pool.failure is not None:
        announce(f"agl: {pool.failure.message}")
        return 1
    return 0
