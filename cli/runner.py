"""`agl runner`: executes an agent on the rollouts of a store, in one process or several that are replaced when they die."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import click

from ..core.contract import LightningStore
from ..core.errors import AgentLightningError, HistoryChanged, InvalidInput
from ..core.hooks import Hook
from ..core.loglines import setup_logging
from ..core.open_log import shown
from .interrupts import StopFlag, announce, ignore_interrupts
from .reading import refuse_bare_port
from .terminal import echo_json, examples, json_option, log_level_option

DEFAULT_STORE = "http://127.0.0.1:4747"
TOKEN_VARIABLE = "AGL_TOKEN"
HOPELESS = 3
"""Exit code of a child whose error will not get better by starting it again."""
WORN_OUT = 4
"""Exit code of a child that an agent of its own keeps busy for ever, in a thread or on its event loop."""
SHORT_LIFE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 30.0
GRACE_SECONDS = 10.0
LONGEST_HOST = 40
IDLE_SECONDS = 1.0
"""Twice as long as a runner that was asked to stop needs to look up from its wait for work."""
WATCH_SECONDS = 0.1
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
@click.option("--supervised", is_flag=True, hidden=True)
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
    supervised: bool,
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
    if processes > 1:
        _check_agent(agent)
        command = [sys.executable, "-m", __name__.partition(".")[0], "runner", agent, "--supervised"]
        command += ["--store", url, "--log-level", log_level, "--slots", str(slots), "--group", group]
        command += [] if max_rollouts is None else ["--max-rollouts", str(max_rollouts)]
        done = asyncio.run(Crew(command, processes, worker_id, token).run())
    else:
        try:
            options = Options(max_rollouts=max_rollouts, slots=slots, group=group)
            done = asyncio.run(_work(agent, url, token, worker_id, options, supervised))
        except AgentLightningError as error:
            if not supervised or error.retryable or isinstance(error, HistoryChanged):
                raise
            announce(f"agl: {error.message}")
            return HOPELESS
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


def _check_agent(agent: str) -> None:
    """Load the agent once here: a wrong name is one sentence, not one of every process."""
    from ..runners.load import load_agent

    load_agent(agent)


async def _work(
    agent: str, url: str, token: str | None, worker_id: int | None, options: Options, supervised: bool
) -> int:
    """One runner in this process; returns the exit code."""
    from ..runners.load import load_agent, run_agent

    loaded = load_agent(agent)
    stop = StopFlag()
    stop.install()
    if supervised:
        ignore_interrupts()
        _end_with_parent(stop)
    busy = Busy()
    async with _opened(url, token) as store:
        work = asyncio.ensure_future(
            run_agent(
                loaded,
                store,
                worker_id=os.getpid() if worker_id is None else worker_id,
                worker_name=_worker_name() if worker_id is None else None,
                on_stuck=_leave_stuck if supervised else None,
                max_rollouts=options.max_rollouts,
                event=stop,
                hooks=[busy],
                slots=options.slots,
                group=options.group,
            )
        )
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set() and not supervised:
                announce(_STOPPING if busy.now else "Stopping.")
            given_up = await _finish(work, busy)
        finally:
            stopped.cancel()
    if given_up:
        logger.warning("%d agent(s) did not end in time and were left behind in their threads.", given_up)
    return WORN_OUT if given_up and supervised and not stop.is_set() else stop.exit_code()


def _worker_name() -> str:
    """Host, process and a random part: process ids repeat among containers, and host names among machines."""
    host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())[:LONGEST_HOST]
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


def _leave_stuck(prefix: str) -> None:
    """End this process at once, in the middle of an agent that lets nothing else run; the crew starts another."""
    logger.error("%s The agent is past its time limit and blocks the event loop; its process is replaced.", prefix)
    os._exit(WORN_OUT)


@asynccontextmanager
async def _opened(url: str, token: str | None) -> AsyncGenerator[LightningStore, None]:
    """The store: a client that waits for it where it serves, else one of this process over the log itself."""
    if url.startswith("http"):
        from ..projections.rest.client import LightningStoreClient

        client = LightningStoreClient(url, token=token, patience_seconds=math.inf)
        try:
            yield client
        finally:
            await client.close()
        return
    from ..projections.store import EventLogStore, open_store

    store = await asyncio.to_thread(open_store, url, environment=os.environ)
    assert isinstance(store, EventLogStore)
    try:
        yield store
    finally:
        await store.end()


class Busy(Hook):
    """Knows whether a rollout is being executed. The end of one may be heard without its start, where that failed."""

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

    One that is asked to end and only waits, perhaps for a store that is away, is cancelled.
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


def _end_with_parent(stop: StopFlag) -> None:
    """Set `stop` when standard input closes: the parent holds its other end and never writes, however it ends."""
    stream = os.dup(sys.stdin.fileno())

    def wait() -> None:
        while os.read(stream, 4096):
            pass
        stop.set()

    threading.Thread(target=wait, name="agl-parent", daemon=True).start()


@dataclass
class Member:
    """One place in the crew: the process in it, when it was started, and when the next may be."""

    number: int | None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    not_before: float = 0.0
    pause_seconds: float = 0.0
    finished: bool = False


class Crew:
    """Keeps so many runner processes alive. One that ends by itself with code 0 has done its rollouts and stays away."""

    def __init__(self, command: list[str], processes: int, worker_id: int | None, token: str | None) -> None:
        self._command = command
        self._members = [Member(None if worker_id is None else worker_id + index) for index in range(processes)]
        self._environment = {**os.environ, **({TOKEN_VARIABLE: token} if token else {})}

    async def run(self) -> int:
        """Until all have finished, one is hopeless, or a signal comes; returns the exit code."""
        stop = StopFlag()
        stop.install()
        hopeless = False
        try:
            while not stop.is_set() and not hopeless and not all(member.finished for member in self._members):
                for member in self._members:
                    hopeless = self._tend(member) or hopeless
                try:
                    await asyncio.wait_for(stop.wait(), WATCH_SECONDS)
                except asyncio.TimeoutError:
                    pass
            if stop.is_set():
                announce(_STOPPING)
        finally:
            await asyncio.to_thread(self._end, stop)
        return 1 if hopeless else stop.exit_code()

    def _tend(self, member: Member) -> bool:
        """Start, replace or let go one member; True where its error will not get better."""
        now = time.monotonic()
        if member.finished:
            return False
        if member.process is None:
            if now >= member.not_before:
                self._start(member, now)
            return False
        code = member.process.poll()
        if code is None:
            return False
        self._let_go(member)
        if code == 0:
            member.finished = True
            return False
        if code in (HOPELESS, 2):
            return True
        # A worn-out process did what it could: it is replaced at once, however young.
        short = now - member.started < SHORT_LIFE_SECONDS and code != WORN_OUT
        member.pause_seconds = min(max(2 * member.pause_seconds, 1.0), LONGEST_PAUSE_SECONDS) if short else 0.0
        member.not_before = now + member.pause_seconds
        after = f" in {member.pause_seconds:g} s" if member.pause_seconds else ""
        logger.warning("A runner process ended with code %d; another takes its place%s", code, after)
        return False

    def _start(self, member: Member, now: float) -> None:
        command = self._command if member.number is None else [*self._command, "--worker-id", str(member.number)]
        # A pipe that closes when this process ends, also by kill -9: the children must not outlive it.
        member.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=self._environment)
        member.started = now

    def _let_go(self, member: Member) -> None:
        if member.process is not None and member.process.stdin is not None:
            member.process.stdin.close()
        member.process = None

    def _end(self, stop: StopFlag) -> None:
        """Close the pipes, which asks the children to finish what they run; end those that do not in time."""
        running = [member.process for member in self._members if member.process is not None]
        for member in self._members:
            self._let_go(member)
        # Asked by a person, who may ask again; else nobody would ever.
        limit = None if stop.is_set() else GRACE_SECONDS
        for process in running:
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                process.terminate()
