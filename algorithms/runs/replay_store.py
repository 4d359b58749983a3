"""The store of a replayed algorithm: no runner, no model; the record answers, and every decision is compared with it.

Time is a position of the control log. It moves when the algorithm has nothing else to do: to where a decision was
recorded once it is made again, to where the rollouts that are waited for were completed, to the next fact.
"""

from __future__ import annotations

import asyncio
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ...core.errors import InvalidInput, NotFound
from ...core.events.run_events import digest_of
from ...core.log.interface import Log
from ...core.model.resources import ResourcesUpdate, validate_resources
from ...core.model.rollout import (
    Attempt,
    AttemptedRollout,
    EnqueueRolloutRequest,
    Fact,
    PaginatedResult,
    Rollout,
)
from ...core.model.scalars import escaped, model_data
from ...core.model.span import Span
from ...core.model.store_interface import LightningStoreCapabilities, LightningStoreStatistics
from ...projections.facts.derived_topic import facts_of
from ...projections.history.past_store import PastStore
from ...projections.replica import validation
from ...projections.store.views import attempted_out, resources_out
from .recording import Recording, Script, Step
from .recording_store import ENQUEUED, PUBLISHED, STARTED, arguments_of, request_digest, request_of, resources_digest

SETTLE_YIELDS = 20
"""Turns of the event loop without a decision or question after which the algorithm counts as waiting."""
GRACE_SECONDS = 0.2
"""How long a decision that was recorded before the next outcome may take to be made again."""
MOST_FRUITLESS_WAITS = 100
"""So often an algorithm may ask for outcomes that the record does not have, without deciding anything."""
SHOWN = 120


class ReplayStore(PastStore):
    """A `LightningStore` over a recorded run. Usable from any thread and event loop.

    Raises `Departed` at the first decision that the record does not have, `RecordEnds` where the algorithm waits for what
    the record does not hold. Questions about anything else get the answer of their time.
    """

    def __init__(self, log: Log, recording: Recording) -> None:
        super().__init__(log)
        self.recording = recording
        self.script = Script(recording.steps, broken_off=recording.run.outcome != "succeeded")
        closed_at = recording.run.closed_at
        self.end = recording.end if closed_at is None else closed_at
        """The position of the run's last record, or behind the log where it was not closed."""
        self.run_id = recording.run.run_id
        self._waiting: dict[object, int] = {}
        self._callers: list[asyncio.Task[Any]] = []
        self._activity = 0
        self._fruitless = 0
        self._asked: set[tuple[int, str]] = set()
        self._lock = threading.Lock()
        self.past.to(recording.run.opened_at + 1)

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return LightningStoreCapabilities(
            thread_safe=True, async_safe=True, zero_copy=False, otlp_traces=False, push_dequeue=True, subscribe=True
        )

    async def statistics(self) -> LightningStoreStatistics:
        with self.past.node.lock:
            state = self.past.node.state
            return LightningStoreStatistics(
                name=type(self).__name__, total_rollouts=state.created, total_resources=len(state.resources)
            )

    # Decisions

    async def decided(self, kind: str, content: Any = None) -> None:
        """As `RecordingStore.decided`."""
        kind = escaped(kind)  # as it is recorded
        await self._take(kind, digest_of(content), f"{kind} {_short(content)}")

    async def _take(self, kind: str, digest: str, got: str) -> Step:
        alone = await self._alone()
        self._activity += 1
        self._fruitless = 0
        step = self.script.take(kind, digest, got, self.described, in_order=alone)
        self.past.to(step.position + 1)
        return step

    async def _alone(self) -> bool:
        """Whether no other task of the algorithm uses this store at the same time."""
        task = asyncio.current_task()
        with self._lock:
            self._callers = [one for one in self._callers if not one.done() and one is not task]
            if task is not None:
                self._callers.append(task)
        await asyncio.sleep(0)  # those that were started together show up
        with self._lock:
            return all(one is task or one.done() for one in self._callers)

    def described(self, step: Step) -> str:
        """A recorded step in words: what was enqueued or published is looked up where it was."""
        self.past.to(step.position + 1)
        if step.kind in (ENQUEUED, STARTED):
            rollout = self.past.load(step.subject)
            asked = None if rollout is None else self._plain(rollout, "").input
            return f"{step.kind} {_short(asked)} ({step.subject})"
        if step.kind == PUBLISHED:
            return f"{step.kind} {step.subject} version {step.version} {_short(self._published(step))}"
        return f"{step.kind} {_short(step.shown)}"

    def _published(self, step: Step) -> dict[str, Any] | None:
        versions = self.past.node.state.resources.get(step.subject, [])
        if not 1 <= step.version <= len(versions):
            return None
        return _plain(resources_out(versions[step.version - 1], self.past.fetch).resources)

    async def _created(self, kind: str, request: EnqueueRolloutRequest) -> Rollout:
        step = await self._take(kind, request_digest(request), f"{kind} {_short(request.input)}")
        rollout = self._plain(self._rollout(step.subject), "")
        return rollout.model_copy(update={"status": "queuing", "end_time": None})

    async def enqueue_rollout(self, *args: Any, **kwargs: Any) -> Rollout:
        return await self._created(ENQUEUED, request_of(arguments_of("enqueue_rollout", args, kwargs)))

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        return [await self._created(ENQUEUED, request) for request in validation.requests(rollouts)]

    async def start_rollout(self, *args: Any, **kwargs: Any) -> AttemptedRollout:
        rollout = await self._created(STARTED, request_of(arguments_of("start_rollout", args, kwargs)))
        found = self._rollout(rollout.rollout_id)
        first = attempted_out(found, found.attempts[0], self.past.fetch)
        return first.model_copy(update={"status": "preparing", "end_time": None})

    def _rollout(self, rollout_id: str) -> Any:
        found = self.past.load(rollout_id)
        if found is None:
            raise NotFound.rollout(rollout_id)
        return found

    async def add_resources(self, resources: Mapping[str, Any]) -> ResourcesUpdate:
        return await self._publish_again(None, resources)

    async def update_resources(self, resources_id: str, resources: Mapping[str, Any]) -> ResourcesUpdate:
        return await self._publish_again(resources_id, resources)

    async def _publish_again(self, resources_id: str | None, resources: Mapping[str, Any]) -> ResourcesUpdate:
        plain = _plain(validate_resources(resources))
        named = "" if resources_id is None else f"{resources_id} "
        step = await self._take(PUBLISHED, resources_digest(resources), f"{PUBLISHED} {named}{_short(plain)}")
        found = await self.get_resources_by_id(step.subject, step.version)
        if found is None:
            raise self.script.over(f"the record has no version {step.version} of {step.subject}", step.position)
        return found

    async def dequeue_rollout(self, *args: Any, **kwargs: Any) -> AttemptedRollout | None:
        """None: the rollouts of a recorded run were executed when it was recorded."""
        return None

    async def dequeue_many_rollouts(self, *args: Any, **kwargs: Any) -> Sequence[AttemptedRollout]:
        return []

    # Time

    async def wait_for_rollouts(self, rollout_ids: Sequence[str], timeout: float | None = None) -> list[Rollout]:
        if isinstance(rollout_ids, str):
            raise InvalidInput("rollout_ids is a list of ids")
        ids = list(rollout_ids)
        while True:
            await self._alone()
            with self.past.node.lock:
                missing = [one for one in ids if self.past.is_finished(one) is False]
                if not missing:
                    return [self._plain(self._rollout(one), "") for one in ids if self.past.is_finished(one)]
            target, again = self._target(missing, timeout)
            await self._reach(target)
            if not again:
                with self.past.node.lock:
                    return [self._plain(self._rollout(one), "") for one in ids if self.past.is_finished(one)]

    def _target(self, missing: Sequence[str], timeout: float | None) -> tuple[int, bool]:
        """(position to go to, whether to look again there): where the wait ended when it was recorded.

        A wait with a timeout ended at the latest where the next decision was based on: until then what was completed may
        have been part of it, and nothing behind it was. Asked again without a decision, the next outcome is let happen.
        """
        nexts = [self._completion(one) for one in missing]
        known = [one for one in nexts if one is not None]
        if timeout is None:
            if len(known) < len(nexts):
                raise self.script.over(f"the record ends before {missing[nexts.index(None)]} was over", self.end)
            return max(known), True
        following = self.script.next
        horizon = self.end if following is None else max(following.based_on, 0)
        if len(known) == len(nexts) and max(known) <= horizon:
            return max(known), True
        if self.at < horizon:
            return horizon, False
        self._fruitless = 0 if known else self._fruitless + 1
        if self._fruitless > MOST_FRUITLESS_WAITS:
            raise self.script.over(f"the record ends before {missing[0]} was over", self.end)
        return min(known, default=self.at), False

    # Questions: one that is asked again before anything happened is a poll, and lets the next outcome happen

    async def get_rollout_by_id(self, rollout_id: str) -> AttemptedRollout | Rollout | None:
        await self._polled(f"rollout {rollout_id}", [rollout_id])
        return await super().get_rollout_by_id(rollout_id)

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        await self._polled(f"attempt {rollout_id}", [rollout_id])
        return await super().get_latest_attempt(rollout_id)

    async def query_attempts(self, rollout_id: str, **conditions: Any) -> PaginatedResult[Attempt]:
        await self._polled(f"attempts {rollout_id}", [rollout_id])
        return await super().query_attempts(rollout_id, **conditions)

    async def query_spans(self, rollout_id: str, attempt_id: str | None = None, **conditions: Any) -> PaginatedResult[Span]:
        await self._polled(f"spans {rollout_id} {attempt_id} {conditions}", [rollout_id])
        return await super().query_spans(rollout_id, attempt_id, **conditions)

    async def query_rollouts(
        self, rollout_ids: Sequence[str] | None = None, **conditions: Any
    ) -> PaginatedResult[Rollout | AttemptedRollout]:
        asked = conditions.get("rollout_id_in") or rollout_ids
        await self._polled(f"rollouts {asked} {conditions}", self.recording.rollout_ids if asked is None else list(asked))
        return await super().query_rollouts(rollout_ids, **conditions)

    async def _polled(self, question: str, rollout_ids: Sequence[str]) -> None:
        key = (self._activity, question)
        if key not in self._asked:
            self._asked = {one for one in self._asked if one[0] == self._activity} | {key}
            return
        with self.past.node.lock:
            missing = [one for one in rollout_ids if self.past.is_finished(one) is False]
        if missing:
            await self._reach(self._target(missing, 0.0)[0])

    def _completion(self, rollout_id: str) -> int | None:
        """How many records have to be folded so that the rollout is over; None where it never was again."""
        positions = self.recording.completed.get(rollout_id, ())
        return next((one + 1 for one in positions if one >= self.at), None)

    async def _reach(self, target: int) -> None:
        """Go to `target` once nobody waits for anything earlier and what was decided before it is decided again."""
        me = object()
        with self._lock:
            self._waiting[me] = target
        try:
            seen, quiet, began = -1, 0, time.monotonic()
            while self.at < target:
                if self.script.departed is not None:
                    raise self.script.departed
                if seen != self._activity:
                    seen, quiet, began = self._activity, 0, time.monotonic()
                with self._lock:
                    first = min(self._waiting.values()) >= target
                following = self.script.next
                due = following is not None and following.position < target and following.based_on <= self.at
                if first and quiet >= SETTLE_YIELDS and (not due or time.monotonic() - began > GRACE_SECONDS):
                    await asyncio.to_thread(self.past.to, target)
                    self._activity += 1
                    return
                quiet += 1
                await asyncio.sleep(0 if quiet < SETTLE_YIELDS else 0.002)
        finally:
            with self._lock:
                del self._waiting[me]

    def subscribe(self, types: Sequence[str] | None = None, *, since: int | None = None) -> AsyncIterator[Fact]:
        wanted = None if types is None else frozenset([types] if isinstance(types, str) else types)
        return self._facts(wanted, self.at - 1 if since is None else since)

    async def _facts(self, wanted: frozenset[str] | None, since: int) -> AsyncIterator[Fact]:
        """Ends where the run ended: nothing follows in the record."""
        batches, index = self.past.batches, 0
        while True:
            while index < len(batches):
                one = batches[index]
                index += 1
                if one.position > since:
                    for fact in facts_of(one, self.past.log.log_id):
                        if wanted is None or fact.type in wanted:
                            yield fact
            following = self._next_fact(wanted)
            if following is None:
                return
            await self._reach(following)

    def _next_fact(self, wanted: frozenset[str] | None) -> int | None:
        """How many records have to be folded for the next fact of these types; None where the run has no further one."""
        found: list[int] = []
        for kind, positions in self.recording.facts.items():
            index = bisect_left(positions, self.at)
            if (wanted is None or kind in wanted) and index < len(positions) and positions[index] <= self.end:
                found.append(positions[index] + 1)
        return min(found, default=None)


def _plain(resources: Mapping[str, Any]) -> dict[str, Any]:
    return {name: model_data(one) for name, one in resources.items()}


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
