"""A node that starts from a snapshot without an index of what is finished: it serves at once and fills the index meanwhile.

The snapshot holds the id and hash of every archived rollout, not the rollout. Those come from the copy of an index in the
log (index_copy.py), and each whose hash is still the one that counts goes into the index. Where that leaves some out, the
log is folded from its first record in the background.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from ...core.errors import LogError, Rebuilding, StorageError
from ...core.fold.state import Rollout, hash_of, unpack
from ...core.log.interface import Log
from ..replica.fold_cursor import FoldCursor
from ..replica.node import Node
from .index import ArchiveIndex
from .index_copy import read_copy

logger = logging.getLogger(__name__)

SLICE_RECORDS = 256
PAUSE_SECONDS = 0.002
"""Between two slices of some milliseconds: calls that are being served go first."""
RETRY_SECONDS = 2.0
POLL_SECONDS = 0.05


class Backfill:
    """Fills the archive index up to `position` from a thread; None: it broke, and is replaced and filled up to now."""

    def __init__(self, log: Log, node: Node, index: ArchiveIndex, position: int | None) -> None:
        self._log = log
        self._node = node
        self._index = index
        self._position = position
        self._closed = threading.Event()
        self._failed: StorageError | None = None
        self._lost = False
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agl-refill", daemon=True)

    def start(self) -> None:
        """Begin; the node is open and follows its log."""
        self._thread.start()

    async def wait(self, timeout_seconds: float = 20.0) -> None:
        """Return when the index is whole. Raises `Rebuilding` when that takes longer, and what keeps it from being made."""
        deadline = time.monotonic() + timeout_seconds
        while not self.done.is_set():
            self.check()
            if self._closed.is_set() or time.monotonic() > deadline:
                raise Rebuilding("the index of finished rollouts is being made; try again in a moment")
            await asyncio.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raise what keeps the index from ever being made by this process."""
        if self._failed is not None:
            raise self._failed

    def stop(self) -> None:
        """Have it stop soon; nobody waits for it."""
        self._closed.set()

    def close(self) -> None:
        """Stop; the next start begins again."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._fill()
        except Exception as error:  # recorded, and raised where the index is needed: nothing else depends on it
            logger.exception("The index of finished rollouts cannot be made.")
            self._failed = StorageError(f"the index of finished rollouts cannot be made ({error}); restart the store")

    def _fill(self) -> None:
        began = time.monotonic()
        if self._position is None:
            self._index.renew()
            with self._node.lock:
                self._position = self._node.state.position
        whole = self._take_copy()
        if self._closed.is_set():
            return
        self._index.start()
        if not whole:
            self._fold_log(self._position)
        if self._closed.is_set() or self._lost:
            return
        with self._node.lock:
            self._index.whole = True
            position, fingerprint = self._node.state.position, self._node.state.fingerprint
        self._index.flush(position, fingerprint)
        self.done.set()
        logger.info("The index of finished rollouts was made in %.1f s.", time.monotonic() - began)

    def _take_copy(self) -> bool:
        """Keep what the copy in the log has; whether it is everything."""
        try:
            for bodies in read_copy(self._log):
                if self._closed.is_set():
                    return False
                self._keep([(one, body) for body in bodies if (one := unpack(body)) is not None])
                self._index.flush()
                time.sleep(PAUSE_SECONDS)
        except LogError as error:
            logger.warning("The copy of the index of finished rollouts cannot be read: %s", error)
        with self._node.lock:
            state = self._node.state
            return self._index.flush() and self._index.holds(state.created - len(state.rollouts))

    def _fold_log(self, to: int) -> None:
        cursor = FoldCursor(self._log)
        state = cursor.state
        while state.position < to and not self._closed.is_set():
            try:
                folded = cursor.advance(SLICE_RECORDS, to)
            except LogError as error:
                logger.warning("The index of finished rollouts waits for the log: %s", error)
                self._closed.wait(RETRY_SECONDS)
                continue
            if not folded:
                with self._node.lock:
                    self._lost = True
                    self._node.history_changed(f"it ends at position {state.position}, before its own snapshot")
                return
            for _, outcome in folded:
                self._keep(outcome.archived)
            time.sleep(PAUSE_SECONDS)

    def _keep(self, archived: list[tuple[Rollout, bytes]]) -> None:
        """Only what is archived in this very form now: what was carried back since is hot, or was archived anew."""
        if not archived:
            return
        with self._node.lock:
            table = self._node.state.archived
            gone = [(one, body) for one, body in archived if table.get(one.rollout_id) == hash_of(body)]
            self._index.add(gone, self._node.state.position, self._node.state.fingerprint)
