"""What the tests of the store share: time that passes on demand, spans, and shorthands for whole lives of rollouts."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.core.log.interface import Log
from agentlightning.core.log.topics import CONTROL
from agentlightning.core.model.rollout import Fact
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.engine import Engine
from agentlightning.projections.store.store import EventLogStore

PassTime = Callable[[float], Awaitable[None]]


async def settled(engine: Engine) -> None:
    """Wait until the log has answered everything that was proposed, and this node has heard itself."""
    peers = engine.cluster
    while True:
        with engine.node.lock:
            if not engine.node.busy and (peers is None or peers.gossip.settled):
                if not any(thread.name == "agl-expire" for thread in threading.enumerate()):  # it reads, then proposes
                    return
        await asyncio.sleep(0.001)


async def pass_time(engine: Engine, clock: ManualClock, seconds: float, step: float = 1.0) -> None:
    """Let time pass in steps as a timekeeper that is awake sees it, and let everything happen that is due."""
    left = seconds
    while left > 0:
        clock.advance(min(step, left))
        left -= step
        with engine.node.lock:
            engine.expiry.turn()
        await settled(engine)
    with engine.node.lock:
        engine.expiry.turn()
    await settled(engine)


def span(attempted: agl.AttemptedRollout, **fields: Any) -> agl.Span:
    """A span of this attempt."""
    return agl.Span.from_attributes(
        attributes=fields.pop("attributes", {}),
        rollout_id=fields.pop("rollout_id", attempted.rollout_id),
        attempt_id=fields.pop("attempt_id", attempted.attempt.attempt_id),
        **fields,
    )


async def claim(store: agl.LightningStore, worker_id: str | None = None, **options: Any) -> agl.AttemptedRollout:
    """Dequeue what has to be there."""
    claimed = await store.dequeue_rollout(worker_id, **options)
    assert claimed is not None
    return claimed


async def begin(
    store: agl.LightningStore, config: agl.RolloutConfig | None = None, worker_id: str | None = None
) -> agl.AttemptedRollout:
    """Enqueue a rollout and claim it; the queue must be empty."""
    rollout = await store.enqueue_rollout("task", config=config)
    claimed = await claim(store, worker_id)
    assert claimed.rollout_id == rollout.rollout_id
    return claimed


async def status_of(store: agl.LightningStore, rollout_id: str) -> str:
    """The rollout's status now."""
    rollout = await store.get_rollout_by_id(rollout_id)
    assert rollout is not None
    return rollout.status


async def attempt_of(store: agl.LightningStore, rollout_id: str, sequence_id: int = 1) -> agl.Attempt:
    """One attempt, by number."""
    return (await store.query_attempts(rollout_id))[sequence_id - 1]


def ids(rollouts: Iterable[agl.Rollout]) -> list[str]:
    """Their rollout ids, in order."""
    return [rollout.rollout_id for rollout in rollouts]


async def take_facts(store: agl.LightningStore, count: int, **options: Any) -> list[Fact]:
    """The next `count` facts of a subscription, within ten seconds."""
    facts: list[Fact] = []

    async def read() -> None:
        async for fact in store.subscribe(**options):
            facts.append(fact)
            if len(facts) == count:
                return

    await asyncio.wait_for(read(), 10)
    return facts


@contextlib.contextmanager
def store_on(log: Any, **options: Any) -> Any:
    """A store on a log that outlives it: closing the store leaves the log open."""
    settings = options.pop("settings", None) or StoreSettings()
    unclosed: Any = Unclosed(log)
    store = EventLogStore(unclosed, settings=settings, **options)
    try:
        yield store
    finally:
        store.close()


class Unclosed:
    """A log as seen by one of its users: everything of it but the end."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append_staged(self, topic: str, partition: int, take: Any, done: Any) -> None:
        """Through `append` where that is one of its own, as of a log that misbehaves."""
        if hasattr(type(self), "append"):
            self.append(topic, partition, take(), done)
        else:
            self._log.append_staged(topic, partition, take, done)

    def close(self) -> None:
        """Leave it open for the next user."""


def control_values(log: Log) -> list[bytes]:
    """The values of all control records."""
    return [record.value for record in log.read(CONTROL, 0, 0, 1_000_000)]
