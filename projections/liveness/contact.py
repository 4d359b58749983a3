"""Contact: whether a node has folded what was in its log a moment ago, and an error for who asks while it has not.

A node answers from its own copy of the state. Cut off from the broker, or far behind, that copy is of the past: an id that
another node made is unknown here. So before it answers, it looks that the log has told it lately where it ends, and that
everything below is folded.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer

from ...core.errors import LogError, StoreUnreachable
from ...core.log.interface import Log
from ...core.log.topics import CONTROL
from ..replica.node import Node

FRESH_SECONDS = 1.0
"""So old the log's word may be of where it ends, when somebody asks."""
CUT_OFF_SECONDS = 2.0
"""After so long without contact a node says so instead of answering."""
LONGEST_LOOK_SECONDS = 0.02


class Contact:
    """What the log said last of where `control` ends. Thread-safe; times are the node's monotonic clock."""

    def __init__(self, log: Log, node: Node) -> None:
        self._log = log
        self._node = node
        self._lock = threading.Lock()
        self._asked: float | None = None
        """When the question was put that is not answered yet."""
        self._end: tuple[float, int] | None = None
        """(when it was asked, where the log ended), of the last question that was answered."""

    def ask(self, now: float) -> None:
        """Ask where the log ends; does not wait, and does nothing while a question is under way."""
        with self._lock:
            if self._asked is not None:
                return
            self._asked = now
        try:
            self._log.ask_end(CONTROL, 0, self._answered)
        except LogError as error:
            self._answered(error)

    def _answered(self, end: int | LogError) -> None:
        """From a thread of the log, which must not wait for the node's lock."""
        with self._lock:
            asked, self._asked = self._asked, None
            if asked is not None and not isinstance(end, LogError):
                self._end = (asked, end)

    def current(self, now: float, within: float) -> bool:
        """Whether everything is folded that was in the log at a moment not longer ago than `within` seconds."""
        end = self._end
        return end is not None and now - end[0] <= within and self._node.next_offset >= end[1]

    async def wait(self) -> None:
        """Return once this node is current. Raises `StoreUnreachable` after 2 s, or at once where it is known to be cut off."""
        clock = self._node.clock.monotonic
        began, look = time.monotonic(), 0.001
        while True:
            now = clock()
            if not self.current(now, FRESH_SECONDS / 2):
                self.ask(now)
            if self.current(now, FRESH_SECONDS):
                return
            asked = self._asked
            if time.monotonic() - began > CUT_OFF_SECONDS or (asked is not None and now - asked > CUT_OFF_SECONDS):
                raise StoreUnreachable(self._why(now))
            await asyncio.sleep(look)
            look = min(2 * look, LONGEST_LOOK_SECONDS)

    def _why(self, now: float) -> str:
        end = self._end
        if end is None or now - end[0] > FRESH_SECONDS:
            return f"this node is cut off from its log at {self._log.url}, which does not answer; its state may be old"
        lag = end[1] - self._node.next_offset
        return f"this node lags: {lag} of the records in its log at {self._log.url} are not applied yet; its state is old"

    def answers(self, seconds: float) -> bool:
        """Whether the log answers a question that is put now within so many seconds; blocks."""
        answered: Future[int | LogError] = Future()
        try:
            self._log.ask_end(CONTROL, 0, answered.set_result)
            return not isinstance(answered.result(seconds), LogError)
        except (LogError, NoAnswer):
            return False
