"""When the log turns out to be another one than was folded: the store ends, and a restart folds the log anew.

A broker can lose acknowledged records (a power cut, an unclean election, a topic made anew), and a file can be replaced.
What was folded of them is not history any more, and it is in the state, the queue, the waiters and the index. The node
notices (node.py); from then on every call raises the same error, and the owner of the process decides what to do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from ...core.errors import LogError
from ..store.engine import Engine
from .fold_cursor import FoldCursor

logger = logging.getLogger(__name__)

DOUBT_SECONDS = 60.0
"""A history is checked against the log at most so often, whatever other nodes write."""
CHECK_RECORDS = 1024


class Ended:
    """Stands where the engine was: every use of it raises the error that ended the store."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error


class HistoryGuard:
    """Watches the engine of one store. `end` is called once, under the node's lock, with the error that ends the store."""

    def __init__(self, engine: Engine, end: Callable[[Exception], None]) -> None:
        self._engine = engine
        self._end = end
        self._checking = False
        self._checked_at = -DOUBT_SECONDS
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        node = engine.node
        with node.lock:
            node.on_lost = self._lost
            node.on_doubt = self._doubt
            if node.lost_by is not None:
                self._lost(node.lost_by)

    def _lost(self, error: Exception) -> None:
        """Stop the engine from a thread: this one holds the node's lock and may be the node's own."""
        if self._closed.is_set() or self._engine.closed or self._thread is not None:
            return
        self._end(error)
        thread = threading.Thread(target=self._engine.abandon, args=(error,), name="agl-end", daemon=True)
        thread.start()
        self._thread = thread

    def _doubt(self, position: int) -> None:
        """Another node's record does not continue our history: fold the log to see which one it has. Under the node's lock."""
        if self._checking or time.monotonic() - self._checked_at < DOUBT_SECONDS or self._closed.is_set():
            return
        ours = self._engine.node.state.fingerprint
        self._checking = True
        threading.Thread(target=self._check, args=(position, ours), name="agl-doubt", daemon=True).start()

    def _check(self, position: int, ours: bytes) -> None:
        try:
            theirs = fingerprint_at(self._engine, position)
        except LogError as error:
            logger.warning("Whether the log is still what was folded cannot be checked now: %s", error)
            return
        finally:
            self._checked_at, self._checking = time.monotonic(), False
        if theirs != ours:
            with self._engine.node.lock:
                self._engine.node.history_changed(f"folding it from the start gives another state at position {position}")

    def close(self) -> None:
        """Watch no more; waits until an engine that is being stopped has stopped."""
        with self._engine.node.lock:
            self._closed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()


def fingerprint_at(engine: Engine, position: int) -> bytes:
    """The fingerprint after the record at `position`, folded from the log's first record; blocks. b"" where it is shorter."""
    cursor = FoldCursor(engine.log)
    while cursor.advance(CHECK_RECORDS, position + 1):
        time.sleep(0)
    state = cursor.state
    return state.fingerprint if state.position > position or state.halted is not None else b""
