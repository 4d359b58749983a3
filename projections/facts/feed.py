"""Facts for subscribers: what the fold accepted, in log order, from any position on, to as many as want them.

The newest facts are kept in memory; whoever asks for older ones gets them by folding the log again up to there. The id
of a fact is (position, index): the same however often and by whomever it is delivered.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from ...core.errors import OffsetLost
from ...core.events.schema import AttemptClaimed, AttemptStarted, RolloutStarted
from ...core.fold.apply import Outcome, apply
from ...core.fold.state import Rollout, State
from ...core.fold.state_machine import Facts
from ...core.log.interface import Log, Record
from ...core.log.topics import CONTROL
from ...core.model.rollout import Fact
from ..history.run_index import run_of
from ..replica import validation
from ..replica.command_context import Delivery
from ..replica.node import Node
from ..replica.snapshots import Restored

KEPT_RECORDS = 32_768
"""Records whose facts stay in memory; older ones are folded again from the log."""
CHUNK = 256
REFOLD_RECORDS = 256
MAX_REFOLDS = 8
"""States that subscribers far back fold at a time."""
UNUSED_SECONDS = 2.0
TURN_SECONDS = 0.1


DIGEST_BYTES = 8


class Completion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the fact `rollout.completed` carries beside its status, so that a subscriber need not ask the store.

    `task_digest`: BLAKE2b of the encoded input in hex, equal for equal inputs. `resources_*`: what the rollout was bound to.
    `worker_id` and `seconds`: who ran the last attempt, and from its start to the end of the rollout. Absent is what the
    rollout does not have. A reward is not in it: rewards are spans, which the control log does not hold.
    """

    run_id: str | None = None
    task_digest: str
    resources_id: str | None = None
    resources_version: int | None = None
    worker_id: str | None = None
    seconds: float | None = None


def completion_of(rollout: Rollout) -> Completion:
    """The details of a rollout that has just been completed."""
    last = rollout.attempts[-1] if rollout.attempts else None
    ended = rollout.ended_us
    return Completion(
        run_id=run_of(rollout.metadata),
        task_digest=blake2b(rollout.input, digest_size=DIGEST_BYTES).hexdigest(),
        resources_id=rollout.resources_id or None,
        resources_version=rollout.resources_version,
        worker_id=last.worker_id if last is not None else None,
        seconds=(ended - last.started_us) / 1_000_000 if last is not None and ended is not None else None,
    )


class Heard(NamedTuple):
    """What one record led to, kept raw: most facts are never asked for."""

    position: int
    time_us: int
    facts: Facts
    attempt_ids: tuple[str | None, ...]
    worker_id: str | None
    generation: int = 0
    """Of the rollout that this record completed."""
    completion: Completion | None = None


def hear(outcome: Outcome, state: State) -> Heard | None:
    """The facts of one record, right after it was folded; None where it had none."""
    proposal = outcome.proposal
    if proposal is None or not outcome.facts:
        return None
    ids: list[str | None] = []
    generation, completion = 0, None
    for kind, rollout_id, sequence_id, _ in outcome.facts:
        rollout = state.rollouts.get(rollout_id) if rollout_id is not None else None
        known = rollout is not None and 1 <= sequence_id <= len(rollout.attempts)
        ids.append(rollout.attempts[sequence_id - 1].attempt_id if rollout is not None and known else None)
        if kind == "rollout.completed" and rollout is not None:
            generation, completion = rollout.generation, completion_of(rollout)
    event = proposal.event
    worker = event.claim.worker_id if isinstance(event, (AttemptClaimed, AttemptStarted, RolloutStarted)) else None
    return Heard(outcome.position, proposal.time_us, outcome.facts, tuple(ids), worker, generation, completion)


def facts_of(heard: Heard, log_id: str) -> list[Fact]:
    """The facts as subscribers get them."""
    return [Fact(**fact) for fact in plain_facts_of(heard, log_id)]


def plain_facts_of(heard: Heard, log_id: str) -> list[dict[str, Any]]:
    """The facts as plain data, in the order of the fields of `Fact`: what is published as JSON."""
    facts: list[dict[str, Any]] = []
    for index, (kind, rollout_id, sequence_id, detail) in enumerate(heard.facts):
        data: dict[str, object] = {"sequence_id": sequence_id} if sequence_id else {}
        if kind == "rollout.completed":
            data["status"] = detail
            if heard.completion is not None:
                data.update(msgspec.to_builtins(heard.completion))
        elif kind == "resources.published":
            data = {"resources_id": detail, "version": sequence_id}
        elif kind == "attempt.claimed":
            data["worker_id"] = heard.worker_id
        elif detail and detail != heard.attempt_ids[index]:
            data["detail"] = detail
        facts.append(
            {
                "id": f"{heard.position}/{index}",
                "type": kind,
                "position": heard.position,
                "log_id": log_id,
                "time": heard.time_us / 1_000_000,
                "rollout_id": rollout_id,
                "attempt_id": heard.attempt_ids[index],
                "data": data,
            }
        )
    return facts


class Refold:
    """The log folded once more, for subscribers and publishers that begin far back. Every method blocks.

    It starts at the log's first record, or behind `restored`, which has to be no further than where facts are wanted from.
    """

    def __init__(self, log: Log, node: Node, restored: Restored | None = None) -> None:
        self._log = log
        self._node = node
        self._offset = restored.next_offset if restored is not None else 0
        self.state = restored.state if restored is not None else State()

    def advance(self, since: int) -> list[tuple[Record, Outcome, Heard | None]]:
        """Fold the next records; return what became of those at positions after `since`. Raises `OffsetLost` at the end."""
        found: list[tuple[Record, Outcome, Heard | None]] = []
        records = self._log.read(CONTROL, 0, self._offset, REFOLD_RECORDS, headers=False)
        for record in records:
            self._offset = record.offset + 1
            outcome = apply(self.state, record.value)
            if outcome.position > since:
                found.append((record, outcome, hear(outcome, self.state)))
        if not records:
            raise OffsetLost(f"the log ends before position {self.state.position}", offset=self._offset)
        return found

    def step(self, since: int) -> list[Heard]:
        """Fold the next records and return those at positions after `since` that have facts."""
        return [heard for _, _, heard in self.advance(since) if heard is not None]


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
        self._refolds: dict[object, Refold] = {}
        self._busy: set[object] = set()

    async def step(self, owner: object, since: int) -> tuple[list[Heard], int]:
        """The next records with facts after position `since`, and the position that was folded to."""
        while True:
            refold = self._take(owner)
            if refold is not None:
                break
            await asyncio.sleep(TURN_SECONDS)
        try:
            return await asyncio.to_thread(refold.step, since), refold.state.position
        finally:
            with self._lock:
                self._busy.discard(owner)
                self._used[owner] = time.monotonic()

    def _take(self, owner: object) -> Refold | None:
        with self._lock:
            if owner not in self._refolds:
                if len(self._refolds) >= MAX_REFOLDS:
                    waiting = [one for one in self._refolds if one not in self._busy]
                    idle = min(waiting, key=lambda one: self._used[one], default=None)
                    if idle is None or time.monotonic() - self._used[idle] < UNUSED_SECONDS:
                        return None
                    del self._refolds[idle]
                self._refolds[owner] = Refold(self._log, self._node)
            self._used[owner] = time.monotonic()
            self._busy.add(owner)
            return self._refolds[owner]

    def leave(self, owner: object) -> None:
        """The subscriber has caught up or is gone."""
        with self._lock:
            self._refolds.pop(owner, None)
            self._used.pop(owner, None)


class FactFeed:
    """Hands facts to subscribers. A slow one reads from the log, nothing queues up for it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._delivery: Delivery = node.delivery
        self._kept: deque[Heard] = deque(maxlen=KEPT_RECORDS)
        self._complete_after = -1
        self._refolds = _Refolds(node.log, node)
        self._waiting: list[asyncio.Future[None]] = []
        self._failed: Exception | None = None

    def start(self) -> None:
        """Everything after the present position is kept from here on."""
        self._complete_after = self._node.state.position - 1

    def heard(self, outcome: Outcome) -> None:
        """A record was folded; called under the node's lock."""
        heard = hear(outcome, self._node.state)
        if heard is None:
            return
        if len(self._kept) == KEPT_RECORDS:
            self._complete_after = self._kept[0].position
        self._kept.append(heard)
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
                batch: Sequence[Heard] = ()
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
                for heard in batch:
                    for fact in facts_of(heard, self._node.log.log_id):
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

    def kept_after(self, cursor: int, most: int) -> list[Heard] | None:
        """What up to `most` records after position `cursor` led to; None where that is not in memory any more.

        Under the node's lock.
        """
        return None if cursor < self._complete_after else self._after(cursor, most)

    def _after(self, cursor: int, most: int) -> list[Heard]:
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
