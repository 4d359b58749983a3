"""Facts for subscribers: what the fold accepted, in log order, from any position on, to as many as want them.

The newest facts are kept in memory; a subscriber further back gets its facts by folding the log again up to there. The id
of a fact is (position, index): the same however often and by which node it is delivered.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

from ...core.errors import OffsetLost
from ...core.fold.apply import Outcome
from ...core.log.interface import Log
from ...core.model.rollout import Fact
from ..replica import validation
from ..replica.command_context import Delivery
from ..replica.fold_cursor import FoldCursor
from ..replica.node import Node
from .derived_topic import FactBatch, batch_of, facts_of

KEPT_RECORDS = 32_768
"""Records whose facts stay in memory; older ones are folded again from the log."""
CHUNK = 256
REFOLD_RECORDS = 256
MAX_REFOLDS = 8
"""States that subscribers far back fold at a time."""
UNUSED_SECONDS = 2.0
TURN_SECONDS = 0.1
class _Refolds:
    """The refolds of all subscribers that are far back: each holds a whole state, so only a few exist at a time.

    Others wait for their turn. One whose subscriber does not come back for the next facts is dropped for the next in
    turn; if it does come back, it folds the log from its beginning again.
    """

    def __init__(self, log: Log, node: Node) -> None:
        self._log = log
        self._node = node
        self._lock = threading.Lock()
        self._used: dict[object, float] = {}
        self._refolds: dict[object, FoldCursor] = {}
        self._busy: set[object] = set()

    async def step(self, owner: object, since: int) -> tuple[list[FactBatch], int]:
        """The next records with facts after position `since`, and the position that was folded to."""
        while True:
            refold = self._take(owner)
            if refold is not None:
                break
            await asyncio.sleep(TURN_SECONDS)
        try:
            return await asyncio.to_thread(_step, refold, since), refold.state.position
        finally:
            with self._lock:
                self._busy.discard(owner)
                self._used[owner] = time.monotonic()

    def _take(self, owner: object) -> FoldCursor | None:
        with self._lock:
            if owner not in self._refolds:
                if len(self._refolds) >= MAX_REFOLDS:
                    waiting = [one for one in self._refolds if one not in self._busy]
                    idle = min(waiting, key=lambda one: self._used[one], default=None)
                    if idle is None or time.monotonic() - self._used[idle] < UNUSED_SECONDS:
                        return None
                    del self._refolds[idle]
                self._refolds[owner] = FoldCursor(self._log)
            self._used[owner] = time.monotonic()
            self._busy.add(owner)
            return self._refolds[owner]

    def leave(self, owner: object) -> None:
        """The subscriber has caught up or is gone."""
        with self._lock:
            self._refolds.pop(owner, None)
            self._used.pop(owner, None)


def _step(refold: FoldCursor, since: int) -> list[FactBatch]:
    """Fold the next records and return the facts at positions after `since`. Raises `OffsetLost` at the end of the log."""
    folded = refold.advance(REFOLD_RECORDS)
    if not folded:
        raise OffsetLost(f"the log ends before position {refold.state.position}", offset=refold.next_offset)
    batches = (batch_of(outcome) for _, outcome in folded if outcome.position > since)
    return [one for one in batches if one is not None]


class FactFeed:
    """Hands facts to subscribers. A slow one reads from the log, nothing queues up for it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._delivery: Delivery = node.delivery
        self._kept: deque[FactBatch] = deque(maxlen=KEPT_RECORDS)
        self._complete_after = -1
        self._refolds = _Refolds(node.log, node)
        self._waiting: list[asyncio.Future[None]] = []
        self._failed: Exception | None = None

    def start(self) -> None:
        """Everything after the present position is kept from here on."""
        self._complete_after = self._node.state.position - 1

    def folded(self, outcome: Outcome) -> None:
        """A record was folded; called under the node's lock."""
        batch = batch_of(outcome)
        if batch is None:
            return
        if len(self._kept) == KEPT_RECORDS:
            self._complete_after = self._kept[0].position
        self._kept.append(batch)
        if self._waiting:
            for future in self._waiting:
                self._delivery.put(future, None)
            self._waiting.clear()

    def fail(self, error: Exception) -> None:
        """No facts will come any more: every subscriber that waits gets `error`."""
        self._failed = error
        for future in self._waiting:
            self._delivery.put(future, error, True)
        self._waiting.clear()

    def subscribe(self, types: Sequence[str] | None, since: int | None) -> AsyncIterator[Fact]:
        """Facts after position `since`, for ever. Each position comes whole and in order.

        None: from now on, which is the moment of this call, not that of the first `anext`.
        """
        wanted = validation.texts_or_none(types, "types")
        with self._node.lock:
            cursor = self._node.state.position - 1 if since is None else validation.whole(since, "since")
        return self._deliver(None if wanted is None else frozenset(wanted), cursor)

    async def _deliver(self, wanted: frozenset[str] | None, cursor: int) -> AsyncIterator[Fact]:
        me = object()
        try:
            while True:
                batch: Sequence[FactBatch] = ()
                future: asyncio.Future[None] | None = None
                with self._node.lock:
                    behind = cursor < self._complete_after
                    if not behind:
                        batch = self._after(cursor, CHUNK)
                        if not batch:
                            if self._failed is not None:
                                raise self._failed
                            future = asyncio.get_running_loop().create_future()
                            self._waiting.append(future)
                if behind:
                    batch, position = await self._refolds.step(me, cursor)
                    cursor = max(cursor, position - 1)
                elif batch:
                    self._refolds.leave(me)
                    cursor = batch[-1].position
                # Made one record at a time: a subscriber that does not take them holds the raw ones only.
                for one in batch:
                    for fact in facts_of(one, self._node.log.log_id):
                        if wanted is None or fact.type in wanted:
                            yield fact
                if future is not None:
                    await self._next_record(future)
        finally:
            self._refolds.leave(me)

    async def _next_record(self, future: asyncio.Future[None]) -> None:
        try:
            await future
        except asyncio.CancelledError:  # subscribers may come and go for long before there is a next fact
            with self._node.lock:
                if future in self._waiting:
                    self._waiting.remove(future)
            raise

    def kept_after(self, cursor: int, most: int) -> list[FactBatch] | None:
        """What up to `most` records after position `cursor` led to; None where that is not in memory any more.

        Under the node's lock.
        """
        return None if cursor < self._complete_after else self._after(cursor, most)

    def _after(self, cursor: int, most: int) -> list[FactBatch]:
        kept = self._kept
        if not kept or kept[-1].position <= cursor:
            return []
        low, high = 0, len(kept)
        while low < high:
            middle = (low + high) // 2
            if kept[middle].position <= cursor:
                low = middle + 1
            else:
                high = middle
        return [kept[index] for index in range(low, min(low + most, len(kept)))]
