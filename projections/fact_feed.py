"""Facts for subscribers: what the fold accepted, in log order, from any position on, to as many as want them.

The newest facts are kept in memory; whoever asks for older ones gets them by folding the log again up to there. The id
of a fact is (namespace, position, index): the same however often and by whomever it is delivered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from ..core.events import AttemptClaimed, RolloutStarted
from ..core.fold import Outcome, apply
from ..core.log import Log
from ..core.model import Fact
from ..core.state import State
from ..core.topics import CONTROL
from .delivery import Delivery
from .node import Node

KEPT_FACTS = 65_536
CHUNK = 512
REFOLD_RECORDS = 1_024


def facts_of(outcome: Outcome, state: State, namespace: str, log_id: str) -> list[Fact]:
    """The facts of one record, right after it was folded."""
    proposal = outcome.proposal
    if proposal is None or not outcome.facts:
        return []
    facts: list[Fact] = []
    for index, (kind, rollout_id, sequence_id, detail) in enumerate(outcome.facts):
        rollout = state.rollouts.get(rollout_id) if rollout_id is not None else None
        attempt_id = None
        if rollout is not None and 1 <= sequence_id <= len(rollout.attempts):
            attempt_id = rollout.attempts[sequence_id - 1].attempt_id
        data: dict[str, object] = {}
        if sequence_id:
            data["sequence_id"] = sequence_id
        if kind == "rollout.completed":
            data["status"] = detail
        elif kind == "resources.published":
            data = {"resources_id": detail, "version": sequence_id}
        elif detail and not detail.startswith("at-"):
            data["detail"] = detail
        if isinstance(proposal.event, (AttemptClaimed, RolloutStarted)) and kind == "attempt.claimed":
            data["worker_id"] = proposal.event.claim.worker_id
        facts.append(
            Fact.model_construct(
                id=f"{namespace}/{outcome.position}/{index}",
                type=kind,
                position=outcome.position,
                log_id=log_id,
                time=proposal.time_us / 1_000_000,
                rollout_id=rollout_id,
                attempt_id=attempt_id,
                data=data,
            )
        )
    return facts


def refold(log: Log, node: Node, since: int, until: int) -> Sequence[Fact]:
    """The facts at positions after `since` and before `until`, by folding the log from its first record. Blocks."""
    state, offset, found = State(), 0, list[Fact]()
    while state.position < until:
        records = log.read(CONTROL, node.partition, offset, REFOLD_RECORDS, headers=False)
        if not records:
            break
        for record in records:
            offset = record.offset + 1
            if record.key != node.namespace or state.position >= until:
                continue
            outcome = apply(state, record.value)
            if outcome.position > since:
                found.extend(facts_of(outcome, state, node.namespace, log.log_id))
    return found


class FactFeed:
    """Hands facts to subscribers. A slow one reads from the log, nothing queues up for it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._delivery: Delivery = node.delivery
        self._kept: deque[Fact] = deque(maxlen=KEPT_FACTS)
        self._complete_after = -1
        self._waiting: list[asyncio.Future[None]] = []

    def start(self) -> None:
        """Everything after the present position is kept from here on."""
        self._complete_after = self._node.state.position - 1

    def heard(self, outcome: Outcome) -> None:
        """A record was folded; called under the node's lock."""
        if not outcome.facts or outcome.proposal is None:
            return
        facts = facts_of(outcome, self._node.state, self._node.namespace, self._node.log.log_id)
        if len(self._kept) + len(facts) > KEPT_FACTS:
            self._complete_after = self._kept[min(len(facts), len(self._kept)) - 1].position
        self._kept.extend(facts)
        if self._waiting:
            for future in self._waiting:
                self._delivery.put(future, None)
            self._waiting.clear()

    async def subscribe(self, types: Sequence[str] | None, since: int | None) -> AsyncIterator[Fact]:
        """Facts after position `since` (None: from now on), for ever. Each position comes whole and in order."""
        wanted = None if types is None else frozenset(types)
        with self._node.lock:
            cursor = self._node.state.position - 1 if since is None else since
        while True:
            batch, cursor, future = await self._next(cursor)
            for fact in batch:
                if wanted is None or fact.type in wanted:
                    yield fact
            if future is not None:
                await future

    async def _next(self, cursor: int) -> tuple[Sequence[Fact], int, asyncio.Future[None] | None]:
        """Facts behind `cursor`, the new cursor, and a future to wait for where there were none."""
        with self._node.lock:
            behind = cursor < self._complete_after
            until = self._complete_after + 1
            if not behind:
                batch = self._behind(cursor)
                if batch:
                    return batch, batch[-1].position, None
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(future)
                return (), cursor, future
        found = await asyncio.to_thread(refold, self._node.log, self._node, cursor, until)
        return found, until - 1, None

    def _behind(self, cursor: int) -> list[Fact]:
        """A run of kept facts after `cursor`, ending with a whole position."""
        newest = len(self._kept)
        if not newest or self._kept[-1].position <= cursor:
            return []
        low, high = 0, newest
        while low < high:
            middle = (low + high) // 2
            if self._kept[middle].position <= cursor:
                low = middle + 1
            else:
                high = middle
        end = min(low + CHUNK, newest)
        while end < newest and self._kept[end].position == self._kept[end - 1].position:
            end += 1
        return [self._kept[index] for index in range(low, end)]
