"""When the log turns out to be another one than was folded: answer nothing from it, fold it anew, go on.

A broker can lose acknowledged records (a power cut, an unclean election, a topic made anew). What was folded of them is
not history any more. The node notices (node.py), this module replaces the engine, and callers repeat their commands
under the same ids.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from ..core.errors import LogClosed, LogError, OffsetLost, Rebuilding
from ..core.fold import apply
from ..core.state import State
from ..core.topics import CONTROL
from .engine import Engine

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
DOUBT_SECONDS = 60.0
"""A history is checked against the log at most so often, whatever other nodes write."""
CHECK_RECORDS = 1024


class Gone:
    """Stands where the engine was: whatever is asked of it is answered with why it cannot be."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error


class Rebuilder:
    """Replaces the engine of one store. `make` folds the log anew; `put` puts what stands for the engine into place."""

    def __init__(self, make: Callable[[], Engine], put: Callable[[Engine | Gone], None]) -> None:
        self._make = make
        self._put = put
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._checking = False
        self._checked_at = -DOUBT_SECONDS
        self.rebuilds = 0

    def watch(self, engine: Engine) -> None:
        """Look after an engine from now on."""
        node = engine.node
        with node.lock:
            node.on_lost = lambda error: self._lost(engine, error)
            node.on_doubt = lambda position: self._doubt(engine, position)
            if node.broken is not None and not isinstance(node.broken, LogClosed):
                self._lost(engine, node.broken)

    def _lost(self, engine: Engine, error: Exception) -> None:
        """Under the node's lock, so the work is a thread's."""
        if self._closed.is_set() or engine.closed:
            return
        self._put(Gone(Rebuilding(f"the log changed ({error}); the store folds it anew, try again in a moment")))
        self._thread = threading.Thread(target=self._replace, args=(engine,), name="agl-rebuild", daemon=True)
        self._thread.start()

    def _replace(self, old: Engine) -> None:
        began = time.monotonic()
        old.abandon(Rebuilding("the log changed; the store folds it anew, try again in a moment"))
        while not self._closed.is_set():
            try:
                engine = self._make()
            except LogClosed:
                return
            except LogError as error:
                logger.warning("The log cannot be folded anew yet: %s", error)
                self._closed.wait(RETRY_SECONDS)
                continue
            self.rebuilds += 1
            self._put(engine)
            self.watch(engine)
            logger.warning(
                "The log was folded anew in %.1f s: %d events.", time.monotonic() - began, engine.node.state.position
            )
            return

    def _doubt(self, engine: Engine, position: int) -> None:
        """Another node's record does not continue our history: find out from the log whose it is. Under the node's lock."""
        if self._checking or time.monotonic() - self._checked_at < DOUBT_SECONDS or self._closed.is_set():
            return
        ours = engine.node.state.fingerprint
        self._checking = True
        threading.Thread(target=self._check, args=(engine, position, ours), name="agl-doubt", daemon=True).start()

    def _check(self, engine: Engine, position: int, ours: bytes) -> None:
        try:
            theirs = fingerprint_at(engine, position)
        except LogError as error:
            logger.warning("Whether the log is still what was folded cannot be checked now: %s", error)
            return
        finally:
            self._checked_at, self._checking = time.monotonic(), False
        if theirs != ours:
            with engine.node.lock:
                engine.node.lost(OffsetLost(f"folding it from the start gives another state at position {position}"))

    def close(self) -> None:
        """No more rebuilds; waits for one under way."""
        self._closed.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def fingerprint_at(engine: Engine, position: int) -> bytes:
    """The fingerprint after the record at `position`, folded from the log's first record; blocks. b"" where it is shorter."""
    node, log = engine.node, engine.log
    state, offset = State(), 0
    while state.position <= position:
        records = log.read(CONTROL, node.partition, offset, CHECK_RECORDS, headers=False)
        if not records:
            return b""
        for record in records:
            offset = record.offset + 1
            if record.key == node.namespace:
                apply(state, record.value)
                if state.position > position or state.halted is not None:
                    return state.fingerprint
        time.sleep(0)
    return state.fingerprint
