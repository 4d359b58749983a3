"""Worker processes under a supervisor: started, watched, replaced when they die, and ended in steps."""

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
from .pickling import pickled
from .process import (
    CANCEL,
    DONE,
    FAILED,
    READY,
    STOP,
    UNGUARDED,
    UNREADABLE,
    WORKS,
    WORN_OUT,
    Assignment,
    Job,
    interrupts_later,
    work,
)

__all__ = ["KILL", "MOST_FAILED_STARTS", "TERMINATE", "WATCH_SECONDS", "Supervisor", "Place"]

_log = logging.getLogger(__name__)
WATCH_SECONDS = 0.05
SHORT_LIFE_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_START_SECONDS = 10.0
"""A process that is not at work after so long does not keep the next one from its start."""
MOST_FAILED_STARTS = 5
"""So many processes in a row that never began are no accident."""
TERMINATE, KILL = "terminate", "kill"
"""Steps of an end beside STOP and CANCEL, which processes are told."""


@dataclass
class Place:
    """One place in the pool, and the process in it."""

    number: int
    name: str
    process: Any = None
    link: Connection | None = None
    method: str = ""
    """How the process in it was started."""
    started: float = 0.0
    began: float = 0.0
    """When it had read its job; until then when it was started."""
    not_before: float = 0.0
    pause_seconds: float = 0.0
    ready: bool = False
    works: bool = False
    """The process has loaded everything that it needs."""
    unreadable: str | None = None
    failed_starts: int = 0
    """Processes in a row that ended before they achieved anything."""
    done: bool = False
    """Nothing is left to do here: when the process has ended, no other takes its place."""


class Supervisor:
    """``count`` processes that do ``job``. Subclasses say what each is given, what it is called, and what the log says.

    Args:
        ended: called once, from the supervisor's thread, when it cannot go on (``failure`` says why) or all are done.
        start_method: ``spawn``, ``forkserver`` or ``fork``; None: spawn, and fork where the job cannot be pickled, or
            processes that start from nothing come to no good with this program.
        daemon: end the processes with this one, without a step before.
        at_once: how many processes may be on their way from their start to their work (WORKS) at the same time; None for
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
        self._places = [Place(number, self.name_of(number)) for number in range(count)]
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

    # What subclasses say

    def name_of(self, number: int) -> str:
        """What the process in a place is called."""
        return f"worker-{number}"

    def given(self, place: Place) -> Any:
        """What the process in a place is told beyond the job, at its start; something that pickle takes."""
        return None

    def on_message(self, place: Place, what: str, text: str) -> None:
        """A message of a job, beyond those of every job."""

    def is_failed_start(self, place: Place, seconds: float) -> bool:
        """Whether a process that died after so many seconds has achieved nothing."""
        return not place.ready

    def on_start(self, place: Place) -> None:
        """Before the first process of a place starts."""

    def on_end(self, place: Place, code: int | None) -> None:
        """A process has ended, for whatever reason."""

    def on_replace(self, place: Place, code: int | None) -> None:
        """Another process is to take the place of one that died."""

    def on_failed_end(self, place: Place, code: int) -> None:
        """A process has ended with an error of its own while the pool was ending."""

    def on_kill(self, place: Place) -> None:
        """Before a process that does not end is killed."""

    def on_fork(self, why: str) -> None:
        """Processes are forked from now on."""

    def not_forked(self, why: str) -> str:
        """The error where they would have to be forked and cannot."""
        return f"No worker process can be started: {why}."

    def given_up(self, place: Place, code: int | None) -> str:
        """The error where the processes of a place end again and again before they begin; ``code`` is the last one's."""
        return f"{place.name} ended {MOST_FAILED_STARTS} times before it began, last with exit code {code}"

    # Starting

    def start(self) -> None:
        """Start the processes, and watch them from a thread of the supervisor's own."""
        with self._guard:
            for place in self._places:
                self.on_start(place)
                if self._has_turn():
                    self._start(place)
        threading.Thread(target=self._watch, name="agl-supervisor", daemon=True).start()

    def _start(self, place: Place) -> None:
        context: Any = multiprocessing.get_context(self._method)
        mine, its = context.Pipe()
        job = self._job if self._pickled is None else None
        assignment = Assignment(place.number, self.given(place), self._pickled, job, _log_level(), os.getpid())
        place.process = context.Process(
            target=work,
            args=(assignment, its, mine if self._method == "fork" else None),
            name=place.name,
            daemon=self._daemon,
        )
        with interrupts_later():
            place.process.start()
        its.close()
        place.link, place.method, place.started, place.ready = mine, self._method, time.monotonic(), False
        place.began = place.started
        place.works, place.unreadable = False, None

    def _has_turn(self) -> bool:
        """Whether another process may start: few enough are starting, those left out that take very long."""
        now = time.monotonic()
        starting = [one for one in self._places if one.process is not None and not one.works]
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
                for place in self._places:
                    if self.failure is None:
                        self._tend(place)
                self.finished = all(place.done and place.process is None for place in self._places)
            if self.failure is not None or self.finished:
                self._ended()
                return

    def _tend(self, place: Place) -> None:
        """Hear what the process says, and put another in its place where it died."""
        if place.process is None:
            if not place.done and time.monotonic() >= place.not_before and self._has_turn():
                self._start(place)
            return
        alive = place.process.is_alive()
        self._receive(place)
        if alive or self.failure is not None:
            return
        code = self._reap(place)
        why = self._no_spawning(place, code)
        if why is None:
            self.on_end(place, code)
            if not place.done:
                self._replace(place, code)
        elif self._method != "fork":  # the first process that ends so decides for all
            try:
                self._fork_instead(why, None)
            except InvalidInput as error:
                self.failure = error

    def _receive(self, place: Place) -> None:
        try:
            while place.link is not None and place.link.poll():
                what, text = place.link.recv()
                if what == READY:
                    place.ready, place.began = True, time.monotonic()
                elif what == WORKS:
                    place.works = True
                elif what == DONE:
                    place.done = True
                elif what == FAILED:
                    self.failure = AgentLightningError(f"{place.name}: {text}")
                elif what == UNREADABLE:
                    place.unreadable = text
                else:
                    self.on_message(place, what, text)
        except (EOFError, OSError):
            place.link = None

    def _no_spawning(self, place: Place, code: int | None) -> str | None:
        """Why a process that starts from nothing comes to no good here; None where that is not what ended this one."""
        if place.method == "fork" or place.ready:
            return None
        if code == UNGUARDED:
            return "fit() is called outside `if __name__ == '__main__':`"
        if place.unreadable is not None:
            return f"a new process does not find the agent ({place.unreadable})"
        may_fork = self._may_fork or self._method == "fork"
        return "a new process fails while it imports the program" if code and code > 0 and may_fork else None

    def _replace(self, place: Place, code: int | None) -> None:
        now = time.monotonic()
        seconds = now - place.began  # the time to start is the machine's affair
        place.failed_starts = place.failed_starts + 1 if self.is_failed_start(place, seconds) else 0
        if place.failed_starts >= MOST_FAILED_STARTS:
            self.failure = AgentLightningError(self.given_up(place, code))
            return
        # A worn-out process did what it could.
        short = code != WORN_OUT and seconds < SHORT_LIFE_SECONDS
        longer = min(max(2 * place.pause_seconds, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        place.pause_seconds = longer if short else 0.0
        place.not_before = now + place.pause_seconds
        self.on_replace(place, code)

    @staticmethod
    def _reap(place: Place) -> int | None:
        """Forget the process, which has ended; its exit code."""
        process = place.process
        if place.link is not None:
            place.link.close()
        process.join()
        place.link = place.process = None
        return process.exitcode

    # Ending

    def end(self, steps: Sequence[tuple[str, float]], last_seconds: float, hurry: threading.Event) -> list[int | None]:
        """End in steps, each with its pause in seconds, and kill what is left; exit codes of those that ended as told.

        Steps are STOP, CANCEL and TERMINATE. Who ends with an error of its own after STOP or CANCEL, because its agent
        took it along, cost that attempt and nothing else, as at any other time: it has no place in the result. Nor does
        a place that has no process any more. What even a kill does not end is None. ``hurry`` goes straight to the kill.
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
            return codes + [None for place in self._places if place.process is not None]

    def _act(self, step: str) -> None:
        for place in self._places:
            if place.process is None or not place.process.is_alive():
                continue
            if step == TERMINATE:
                place.process.terminate()
            elif step == KILL:
                self.on_kill(place)
                place.process.kill()
            else:
                self._say(place, step)

    @staticmethod
    def _say(place: Place, word: str) -> None:
        try:
            if place.link is not None:
                place.link.send(word)
        except OSError as error:
            _log.debug("%s does not listen any more: %s", place.name, error)

    def _wait_for_ends(self, step: str, seconds: float, hurry: threading.Event) -> list[int | None]:
        codes: list[int | None] = []
        end = time.monotonic() + seconds
        while True:
            here = [place for place in self._places if place.process is not None]
            for place in here:
                if not place.process.is_alive():
                    code = self._reap(place)
                    self.on_end(place, code)
                    if code and step in (STOP, CANCEL):
                        self.on_failed_end(place, code)
                    else:
                        codes.append(code)
            if all(place.process is None for place in here) or time.monotonic() >= end or hurry.wait(WATCH_SECONDS):
                return codes


def _can_fork() -> bool:
    # On macOS the system's own libraries do not survive it.
    return sys.platform != "darwin" and "fork" in multiprocessing.get_all_start_methods()


def _log_level() -> int | None:
    """What a process that starts from nothing has to set up; None where this one has no log lines of ours."""
    logger = logging.getLogger("agentlightning")
    return logger.getEffectiveLevel() if logger.handlers or logging.getLogger().handlers else None
