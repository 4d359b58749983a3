"""Supervisor of worker processes: starts, watches and replaces them, and ends them in steps."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ...core.errors import AgentLightningError, InvalidInput
from ...core.retry import PROCESS_BACKOFF
from .pickling import pickled
from .process import (
    CANCEL,
    DONE,
    EXIT_STUCK,
    EXIT_UNGUARDED,
    FAILED,
    LOADED,
    READY,
    STOP,
    UNREADABLE,
    Assignment,
    Job,
    interrupts_deferred,
    work,
)

__all__ = ["KILL", "MOST_FAILED_STARTS", "TERMINATE", "WATCH_SECONDS", "Supervisor", "WorkerProcess"]

_log = logging.getLogger(__name__)
WATCH_SECONDS = 0.05
SHORT_LIFE_SECONDS = 10.0
LONGEST_START_SECONDS = 10.0
"""After so long a process that has not loaded does not delay the start of the next one."""
MOST_FAILED_STARTS = 5
"""After so many failed starts in a row the supervisor gives up."""
TERMINATE, KILL = "terminate", "kill"
"""Steps of an end beside STOP and CANCEL, which are messages to the processes."""


@dataclass
class WorkerProcess:
    """One numbered worker of the pool, and the process that is running it now."""

    number: int
    name: str
    process: Any = None
    link: Connection | None = None
    method: str = ""
    """How its process was started."""
    started: float = 0.0
    began: float = 0.0
    """When its process had read its job; until then when it was started."""
    not_before: float = 0.0
    pause_seconds: float = 0.0
    short_lives: int = 0
    ready: bool = False
    loaded: bool = False
    """The process has loaded everything that it needs."""
    unreadable: str | None = None
    failed_starts: int = 0
    """Processes in a row that ended before they did any work."""
    done: bool = False
    """Nothing is left to do here: when the process has ended, no other takes its place."""


class Supervisor:
    """``count`` processes that run ``job``. Subclasses define what each is given, its name, and the log lines.

    Args:
        ended: called once, from the supervisor's thread, when it cannot go on (``failure`` says why) or all are done.
        start_method: ``spawn``, ``forkserver`` or ``fork``; None: spawn, and fork where the job cannot be pickled, or
            spawned processes fail with this program.
        daemon: end the processes with this one, without a step before.
        at_once: how many processes may be starting, that is before LOADED, at the same time; None for
            all. More than there are processors only delay one another, and the first work with them.
    """

    def __init__(
        self,
        job: Job,
        count: int,
        ended: Callable[[], None],
        start_method: str | None = None,
        daemon: bool = False,
        at_once: int | None = None,
    ) -> None:
        self.failure: AgentLightningError | None = None
        self.finished = False
        self._job = job
        self._ended = ended
        self._daemon = daemon
        self._at_once = count if at_once is None else at_once
        self._workers = [WorkerProcess(number, self.name_of(number)) for number in range(count)]
        self._guard = threading.RLock()
        self._stopping = threading.Event()
        self._method = start_method or "spawn"
        self._may_fork = start_method is None and _can_fork()
        self._pickled: bytes | None = None
        if self._method != "fork":
            try:
                self._pickled = pickled(job)
            except InvalidInput as error:
                self._fork_instead(error.message, error)

    # What subclasses define

    def name_of(self, number: int) -> str:
        """The name of a worker's process."""
        return f"worker-{number}"

    def given(self, worker: WorkerProcess) -> Any:
        """What a worker's process is given beyond the job, at its start; it has to be picklable."""
        return None

    def on_message(self, worker: WorkerProcess, what: str, text: str) -> None:
        """A message of a job, beyond those of every job."""

    def is_failed_start(self, worker: WorkerProcess, seconds: float) -> bool:
        """Whether a process that ended after so many seconds did no work."""
        return not worker.ready

    def on_start(self, worker: WorkerProcess) -> None:
        """Before the first process of a worker starts."""

    def on_end(self, worker: WorkerProcess, code: int | None) -> None:
        """A process has ended, for whatever reason."""

    def on_replace(self, worker: WorkerProcess, code: int | None) -> None:
        """Another process is to replace one that ended."""

    def on_failed_end(self, worker: WorkerProcess, code: int) -> None:
        """A process has ended with an error of its own while the pool was ending."""

    def on_kill(self, worker: WorkerProcess) -> None:
        """Before a process that does not end is killed."""

    def on_fork(self, why: str) -> None:
        """Processes are forked from now on."""

    def not_forked(self, why: str) -> str:
        """The error where they would have to be forked and cannot."""
        return f"No worker process can be started: {why}."

    def given_up(self, worker: WorkerProcess, code: int | None) -> str:
        """The error where the processes of a worker end again and again before they begin; ``code`` is the last one's."""
        return f"{worker.name} ended {MOST_FAILED_STARTS} times before it began, last with exit code {code}"

    # Starting

    def start(self) -> None:
        """Start the processes, and watch them from a thread of the supervisor's own."""
        with self._guard:
            for worker in self._workers:
                self.on_start(worker)
                if self._has_turn():
                    self._start(worker)
        threading.Thread(target=self._watch, name="agl-supervisor", daemon=True).start()

    def _start(self, worker: WorkerProcess) -> None:
        context: Any = multiprocessing.get_context(self._method)
        mine, its = context.Pipe()
        job = self._job if self._pickled is None else None
        parent = None if self._method == "forkserver" else os.getpid()
        assignment = Assignment(worker.number, self.given(worker), self._pickled, job, _log_level(), parent)
        worker.process = context.Process(
            target=work,
            args=(assignment, its, mine if self._method == "fork" else None),
            name=worker.name,
            daemon=self._daemon,
        )
        with interrupts_deferred():
            worker.process.start()
        its.close()
        worker.link, worker.method, worker.started, worker.ready = mine, self._method, time.monotonic(), False
        worker.began = worker.started
        worker.loaded, worker.unreadable = False, None

    def _has_turn(self) -> bool:
        """Whether another process may start: few enough are starting, those left out that take very long."""
        now = time.monotonic()
        starting = [one for one in self._workers if one.process is not None and not one.loaded]
        return sum(now - one.started < LONGEST_START_SECONDS for one in starting) < self._at_once

    def _fork_instead(self, why: str, error: Exception | None) -> None:
        if not self._may_fork:
            raise InvalidInput(self.not_forked(why)) from error
        self._method, self._may_fork, self._pickled = "fork", False, None
        self.on_fork(why)

    # Watching

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            with self._guard:
                if self._stopping.is_set():
                    return
                for worker in self._workers:
                    if self.failure is None:
                        self._check(worker)
                self.finished = all(worker.done and worker.process is None for worker in self._workers)
            if self.failure is not None or self.finished:
                self._ended()
                return

    def _check(self, worker: WorkerProcess) -> None:
        """Receive the messages of the process, and start another where it ended."""
        if worker.process is None:
            if not worker.done and time.monotonic() >= worker.not_before and self._has_turn():
                self._start(worker)
            return
        alive = worker.process.is_alive()
        self._receive(worker)
        if alive or self.failure is not None:
            return
        code = self._reap(worker)
        why = self._no_spawning(worker, code)
        if why is None:
            self.on_end(worker, code)
            if not worker.done:
                self._replace(worker, code)
        elif self._method != "fork":  # the first process that ends so decides for all
            try:
                self._fork_instead(why, None)
            except InvalidInput as error:
                self.failure = error

    def _receive(self, worker: WorkerProcess) -> None:
        try:
            while worker.link is not None and worker.link.poll():
                what, text = worker.link.recv()
                if what == READY:
                    worker.ready, worker.began = True, time.monotonic()
                elif what == LOADED:
                    worker.loaded = True
                elif what == DONE:
                    worker.done = True
                elif what == FAILED:
                    self.failure = AgentLightningError(f"{worker.name}: {text}")
                elif what == UNREADABLE:
                    worker.unreadable = text
                else:
                    self.on_message(worker, what, text)
        except (EOFError, OSError):
            worker.link = None

    def _no_spawning(self, worker: WorkerProcess, code: int | None) -> str | None:
        """Why a spawned process fails here; None where that is not what ended this one."""
        if worker.method == "fork" or worker.ready:
            return None
        if code == EXIT_UNGUARDED:
            return "fit() is called outside `if __name__ == '__main__':`"
        if worker.unreadable is not None:
            return f"a new process does not find the agent ({worker.unreadable})"
        may_fork = self._may_fork or self._method == "fork"
        return "a new process fails while it imports the program" if code and code > 0 and may_fork else None

    def _replace(self, worker: WorkerProcess, code: int | None) -> None:
        now = time.monotonic()
        seconds = now - worker.began  # without the time to start, which depends on the machine
        worker.failed_starts = worker.failed_starts + 1 if self.is_failed_start(worker, seconds) else 0
        if worker.failed_starts >= MOST_FAILED_STARTS:
            self.failure = AgentLightningError(self.given_up(worker, code))
            return
        # A process that ended because of a stuck agent had worked.
        short = code != EXIT_STUCK and seconds < SHORT_LIFE_SECONDS
        worker.short_lives = worker.short_lives + 1 if short else 0
        worker.pause_seconds = PROCESS_BACKOFF.delay(worker.short_lives) if short else 0.0
        worker.not_before = now + worker.pause_seconds
        self.on_replace(worker, code)

    @staticmethod
    def _reap(worker: WorkerProcess) -> int | None:
        """Forget the process, which has ended; its exit code."""
        process = worker.process
        if worker.link is not None:
            worker.link.close()
        process.join()
        worker.link = worker.process = None
        return process.exitcode

    # Ending

    def end(self, steps: Sequence[tuple[str, float]], last_seconds: float, hurry: threading.Event) -> list[int | None]:
        """End in steps, each with its pause in seconds, and kill what is left; exit codes of those that ended in a step.

        Steps are STOP, CANCEL and TERMINATE. A process that ends with an error after STOP or CANCEL, because of its agent,
        costs that attempt only and is left out of the result. So is a worker without a process. None stands for a process
        that even a kill does not end. ``hurry`` goes straight to the kill.
        """
        self._stopping.set()
        codes: list[int | None] = []
        with self._guard:
            for step, seconds in steps:
                self._act(step)
                codes += self._wait_for_ends(step, seconds, hurry)
                if hurry.is_set():
                    break
            self._act(KILL)
            codes += self._wait_for_ends(KILL, last_seconds, threading.Event())
            return codes + [None for worker in self._workers if worker.process is not None]

    def _act(self, step: str) -> None:
        for worker in self._workers:
            if worker.process is None or not worker.process.is_alive():
                continue
            if step == TERMINATE:
                worker.process.terminate()
            elif step == KILL:
                self.on_kill(worker)
                worker.process.kill()
            else:
                self._send(worker, step)

    @staticmethod
    def _send(worker: WorkerProcess, word: str) -> None:
        try:
            if worker.link is not None:
                worker.link.send(word)
        except OSError as error:
            _log.debug("%s does not receive messages any more: %s", worker.name, error)

    def _wait_for_ends(self, step: str, seconds: float, hurry: threading.Event) -> list[int | None]:
        codes: list[int | None] = []
        end = time.monotonic() + seconds
        while True:
            here = [worker for worker in self._workers if worker.process is not None]
            for worker in here:
                if not worker.process.is_alive():
                    code = self._reap(worker)
                    self.on_end(worker, code)
                    if code and step in (STOP, CANCEL):
                        self.on_failed_end(worker, code)
                    else:
                        codes.append(code)
            if all(worker.process is None for worker in here) or time.monotonic() >= end or hurry.wait(WATCH_SECONDS):
                return codes


def _can_fork() -> bool:
    # On macOS the system's own libraries do not survive it.
    return sys.platform != "darwin" and "fork" in multiprocessing.get_all_start_methods()


def _log_level() -> int | None:
    """The log level that a spawned process sets up; None where this one does not log."""
    logger = logging.getLogger("agentlightning")
    return logger.getEffectiveLevel() if logger.handlers or logging.getLogger().handlers else None
