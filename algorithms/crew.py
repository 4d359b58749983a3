"""A crew of worker processes: started, watched, replaced when they die, and ended in steps."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ..core.errors import InvalidInput
from .carrying import carried
from .worker_process import (
    CANCEL,
    DONE,
    FAILED,
    HOPELESS,
    READY,
    STOP,
    UNGUARDED,
    UNREADABLE,
    WORN_OUT,
    Assignment,
    work,
)

__all__ = ["Crew"]

_log = logging.getLogger(__name__)
WATCH_SECONDS = 0.05
SHORT_LIFE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 30.0
STILLBORN = 5
"""So many deaths in a row before a process began its work are no accident."""


@dataclass
class Place:
    """One place in the crew, and the process in it."""

    number: int
    process: Any = None
    link: Connection | None = None
    started: float = 0.0
    not_before: float = 0.0
    pause_seconds: float = 0.0
    ready: bool = False
    stillborn: int = 0
    unreadable: str | None = None
    done: bool = False


class Crew:
    """``count`` processes that run ``bundle`` on ``store``, which has to be picklable.

    Args:
        start_method: ``spawn``, ``forkserver`` or ``fork``; None: spawn, and fork where the bundle cannot be carried.
        prefix: what the workers' names in the store begin with; None: they are called by their numbers.
        ended: called once, from a thread of the crew, when it cannot go on (``failure`` says why) or all are done.
    """

    def __init__(
        self,
        bundle: Any,
        count: int,
        store: Any,
        start_method: str | None,
        ended: Callable[[], None],
        prefix: str | None = None,
    ) -> None:
        self.failure: str | None = None
        self.finished = False
        self._bundle = bundle
        self._store = store
        self._ended = ended
        self._prefix = prefix
        self._places = [Place(number) for number in range(count)]
        self._guard = threading.RLock()
        self._stopping = threading.Event()
        self._method = start_method or "spawn"
        self._may_fork = start_method is None and _can_fork()
        self._carried: bytes | None = None
        if self._method != "fork":
            try:
                self._carried = carried(bundle)
            except InvalidInput as error:
                self._fork_instead(f"Runners are forked: {error.message}.", error)

    def _fork_instead(self, why: str, error: Exception | None) -> None:
        if not self._may_fork:
            reason = why.replace("are forked", "cannot be started")
            raise InvalidInput(f"{reason} Define the agent in a module, or use strategy='shm'.") from error
        _log.warning("%s", why)
        self._method, self._may_fork, self._carried = "fork", False, None

    def start(self) -> None:
        """Start the processes, and watch them from a thread of the crew's own."""
        with self._guard:
            for place in self._places:
                self._start(place)
        threading.Thread(target=self._watch, name="agl-crew", daemon=True).start()

    def pids(self) -> list[int]:
        """The process ids of those that live."""
        with self._guard:
            return [
                place.process.pid for place in self._places if place.process is not None and place.process.is_alive()
            ]

    def _start(self, place: Place) -> None:
        context: Any = multiprocessing.get_context(self._method)
        mine, its = context.Pipe()
        assignment = Assignment(
            place.number,
            self._store,
            self._carried,
            self._bundle if self._carried is None else None,
            _log_level(),
            self._prefix,
            os.getpid(),
        )
        place.process = context.Process(
            target=work,
            args=(assignment, its, mine if self._method == "fork" else None),
            name=f"runner-{place.number}",
        )
        place.process.start()
        its.close()
        place.link, place.started, place.ready = mine, time.monotonic(), False

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            with self._guard:
                if self._stopping.is_set():
                    return
                for place in self._places:
                    self._tend(place)
                self.finished = all(place.done for place in self._places)
            if self.failure is not None or self.finished:
                self._ended()
                return

    def _tend(self, place: Place) -> None:
        """Hear what the process says, and put another in its place where it died."""
        if place.done or self.failure is not None:
            return
        if place.process is None:
            if time.monotonic() >= place.not_before:
                self._start(place)
            return
        alive = place.process.is_alive()
        self._hear(place)
        if alive or place.done or self.failure is not None:
            return
        code = place.process.exitcode
        self._let_go(place)
        if code == UNGUARDED:
            self._change("fit() is called outside `if __name__ == '__main__':`")
        elif place.unreadable is not None:
            self._change(f"a new process does not find the agent ({place.unreadable})")
        elif not place.ready and code and code > 0 and self._may_fork and self._method != "fork":
            self._change("a new process fails while it imports the program")
        elif code == HOPELESS:
            self.failure = f"runner-{place.number} cannot work; its log says why"
        else:
            self._replace(place, code)

    def _hear(self, place: Place) -> None:
        try:
            while place.link is not None and place.link.poll():
                what, text = place.link.recv()
                if what == READY:
                    place.ready, place.stillborn = True, 0
                elif what == DONE:
                    place.done = True
                elif what == FAILED:
                    self.failure = f"runner-{place.number}: {text}"
                elif what == UNREADABLE:
                    place.unreadable = text
        except (EOFError, OSError):
            place.link = None

    def _replace(self, place: Place, code: int | None) -> None:
        now = time.monotonic()
        place.stillborn = 0 if place.ready else place.stillborn + 1
        if place.stillborn >= STILLBORN:
            self.failure = f"runner-{place.number} ended {STILLBORN} times before it began, last with exit code {code}"
            return
        # A worn-out process did what it could.
        short = code != WORN_OUT and now - place.started < SHORT_LIFE_SECONDS
        # The first death of a process may be anything: its successor comes at once.
        place.pause_seconds = min(max(2 * place.pause_seconds, 0.25), LONGEST_PAUSE_SECONDS) if short else 0.0
        place.not_before = now + place.pause_seconds
        _log.warning("runner-%d ended with exit code %s; another process takes its place.", place.number, code)

    def _change(self, why: str) -> None:
        """Fork from now on, if that may be; the first process that ends so decides for all."""
        if self._method == "fork":
            return
        try:
            self._fork_instead(f"Runners are forked: {why}.", None)
        except InvalidInput as error:
            self.failure = error.message

    @staticmethod
    def _let_go(place: Place) -> None:
        if place.link is not None:
            place.link.close()
        place.process.join()
        place.link = place.process = None

    def stop(self, grace_seconds: float, step_seconds: float, hurry: threading.Event) -> list[int | None]:
        """Ask, cancel, terminate, kill, with a pause after each; the exit codes of those that ended as they were told to.

        Who ends by itself in the first two steps, because its agent took it along, cost that attempt and nothing
        else, as at any other time: it gets a line in the log and no place in the result. ``hurry`` goes straight
        to the kill.
        """
        self._stopping.set()
        with self._guard:
            places = [place for place in self._places if place.process is not None]

            def terminate(place: Place) -> None:
                place.process.terminate()

            steps: list[tuple[Callable[[Place], None], float]] = [
                (lambda place: self._say(place, STOP), grace_seconds),
                (lambda place: self._say(place, CANCEL), step_seconds),
                (terminate, step_seconds),
            ]
            for act, seconds in steps:
                self._do(places, act)
                ended = hurry.is_set() or self._all_end(places, seconds, hurry)
                if act is not terminate:
                    places = [place for place in places if not self._fell(place)]
                if ended:
                    break
            self._do(places, lambda place: place.process.kill())
            self._all_end(places, step_seconds, threading.Event())
            codes = [place.process.exitcode for place in places]
            for place in places:
                if place.process.exitcode is not None:
                    self._let_go(place)
        return codes

    def _fell(self, place: Place) -> bool:
        """Whether the process has ended by itself with an error; it is let go then."""
        code = place.process.exitcode
        if not code:
            return False
        self._let_go(place)
        _log.warning("runner-%d ended with exit code %s while the run was closing.", place.number, code)
        return True

    @staticmethod
    def _do(places: list[Place], act: Callable[[Place], None]) -> None:
        for place in places:
            if place.process.is_alive():
                act(place)

    @staticmethod
    def _say(place: Place, word: str) -> None:
        try:
            if place.link is not None:
                place.link.send(word)
        except OSError as error:
            _log.debug("runner-%d does not listen any more: %s", place.number, error)

    @staticmethod
    def _all_end(places: list[Place], seconds: float, hurry: threading.Event) -> bool:
        end = time.monotonic() + seconds
        while True:
            if not any(place.process.is_alive() for place in places):
                return True
            if time.monotonic() >= end or hurry.wait(WATCH_SECONDS):
                return False


def _can_fork() -> bool:
    # On macOS the system's own libraries do not survive it.
    return sys.platform != "darwin" and "fork" in multiprocessing.get_all_start_methods()


def _log_level() -> int | None:
    """What a process that starts from nothing has to set up; None where this one has no log lines of ours."""
    logger = logging.getLogger("agentlightning")
    return logger.getEffectiveLevel() if logger.handlers or logging.getLogger().handlers else None
