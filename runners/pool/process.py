"""The process of one worker: what it is given, its messages to and from the parent, and its exit codes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, ClassVar, cast

from ..agent.litagent import LitAgent
from ..stop_events import ThreadingEvent
from ..worker.agent_call import run_agents_here

__all__ = [
    "CANCEL",
    "DONE",
    "FAILED",
    "EXIT_PERMANENT",
    "READY",
    "STOP",
    "EXIT_UNGUARDED",
    "UNREADABLE",
    "LOADED",
    "EXIT_STUCK",
    "Assignment",
    "WorkerContext",
    "Job",
    "interrupts_deferred",
    "serve_agent",
    "exit_process",
    "exit_if_importing",
    "work",
]

_log = logging.getLogger(__name__)
STOP, CANCEL = "stop", "cancel"
"""From the parent: take no more work; end what runs."""
READY, LOADED, DONE, FAILED, UNREADABLE = "ready", "loaded", "done", "failed", "unreadable"
"""From the child, each with a text: it has read its job; it has loaded what it needs; it has ended by itself; it cannot
work, and why; it cannot read its job."""
EXIT_PERMANENT = 3
"""Exit code of a child whose error a restart does not mend."""
EXIT_STUCK = 4
"""Exit code of a child with an agent that does not end, in a thread or on its event loop."""
EXIT_UNGUARDED = 5
"""Exit code of a child that called ``fit`` while it imported the main module."""
LOOK_SECONDS = 0.25


class WorkerContext:
    """What a job finds in its process: its worker's number, what it was ``given``, and the link to the parent.

    ``stop`` is set once the parent asks for the end, or is gone.
    """

    def __init__(self, number: int, given: Any, link: Connection) -> None:
        self.number = number
        self.given = given
        self.stop = ThreadingEvent()
        self._link = link
        self._cancelled = False
        self._cancel: Callable[[], None] = lambda: None

    def send(self, what: str, text: str = "") -> None:
        """Send a message to the parent; does nothing where it is gone."""
        try:
            self._link.send((what, text))
        except OSError as error:
            _log.debug("The parent is gone: %s", error)

    def on_cancel(self, act: Callable[[], None]) -> None:
        """Have ``act`` called, from another thread and perhaps twice, when what runs is to end, or at once if it is."""
        self._cancel = act
        if self._cancelled:
            act()

    def cancel(self) -> None:
        """Ask to end what runs."""
        self._cancelled = True
        self._cancel()


class Job(ABC):
    """What each process of a supervisor runs. It is pickled for all of them, so everything in it must be picklable."""

    orphan_seconds: ClassVar[float] = 0.5
    """How long a process may take to end in order when its parent is gone."""
    stops_on_sigterm: ClassVar[bool] = False
    """SIGTERM asks the process to stop, as the parent's STOP does; without it the process ends at once."""

    @abstractmethod
    def work(self, worker: WorkerContext) -> int:
        """Run it, until the end or soon after ``worker.stop``; the exit code of the process."""

    def orphaned(self, worker: WorkerContext) -> None:
        """Called in another thread when the parent is gone, before the process is stopped."""
        _log.debug("The parent is gone.")


def serve_agent(agent: Any, serve: Callable[[], int]) -> int:
    """What a job calls to run ``agent``: the result of ``serve``, its exit code.

    A synchronous agent has the main thread, where signals may be handled; an asynchronous one runs where ``serve`` does.
    """
    if isinstance(agent, LitAgent) and cast("LitAgent[Any]", agent).is_async():
        return serve()
    return run_agents_here(serve, lambda code: exit_process(code.result()))


@dataclass(frozen=True)
class Assignment:
    """What a process starts from. ``pickled``: the job as bytes; ``job``: itself, in a forked process.

    ``parent_pid``: whose child the process is, so that it ends when it is not any more; None for a child of a fork server.
    """

    number: int
    given: Any
    pickled: bytes | None
    job: Job | None
    log_level: int | None
    parent_pid: int | None


def work(assignment: Assignment, link: Connection, parents_end: Connection | None) -> None:
    """The target of the process; it never returns."""
    if parents_end is not None:  # forked: with its own copy open it would never see the parent's end close
        parents_end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent decides
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if assignment.log_level is not None and not logging.getLogger("agentlightning").handlers:
        from ...core.logging_setup import setup_logging

        setup_logging(assignment.log_level)
    exit_process(_run(assignment, link))


def exit_process(code: int) -> None:
    """End this process now: threads of an agent would keep it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            _log.debug("An output could not be flushed: %s", error)
    logging.shutdown()
    os._exit(code)


def _run(assignment: Assignment, link: Connection) -> int:
    worker = WorkerContext(assignment.number, assignment.given, link)
    try:
        job: Any = assignment.job if assignment.pickled is None else pickle.loads(assignment.pickled)
    except Exception as error:
        # Reading it imports the user's modules, which may raise anything.
        worker.send(UNREADABLE, f"{type(error).__name__}: {error}")
        return EXIT_PERMANENT
    if job.stops_on_sigterm:
        signal.signal(signal.SIGTERM, lambda number, frame: worker.stop.set())
    threading.Thread(
        target=_listen, args=(link, worker, job, assignment.parent_pid), name="agl-link", daemon=True
    ).start()
    worker.send(READY)
    return job.work(worker)


def _listen(link: Connection, worker: WorkerContext, job: Job, parent_pid: int | None) -> None:
    """Act on the parent's messages; end soon after the parent, however it ended."""
    try:
        while True:
            if link.poll(LOOK_SECONDS):
                word = link.recv()
                worker.stop.set()
                if word == CANCEL:
                    worker.cancel()
            # A forked process holds its siblings' ends too, and sees none close.
            elif parent_pid is not None and os.getppid() != parent_pid:
                break
    except (EOFError, OSError) as error:
        _log.debug("The link to the parent is closed: %r", error)
    job.orphaned(worker)
    worker.stop.set()
    worker.cancel()
    time.sleep(job.orphan_seconds)
    os._exit(1)


def exit_if_importing() -> None:
    """Called first by ``fit``: ends a worker process that comes here while it imports the main module.

    The program calls ``fit`` without ``if __name__ == "__main__"``; the parent sees the exit code and forks instead.
    """
    # The standard library's own check of this case reads the same name; there is no public one.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(EXIT_UNGUARDED)


@contextmanager
def interrupts_deferred() -> Generator[None, None, None]:
    """While a process starts: Ctrl+C waits until afterwards here, and there until :func:`work` ignores it."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and lifts the block then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
