"""What is done under the node's lock: nothing that waits for a disk, and nothing that is made for callers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.ids import uuid7_hex
from agentlightning.core.log.sqlite import SqliteLog
from agentlightning.core.log.topics import BLOBS
from agentlightning.projections.archive.index import ArchiveIndex
from agentlightning.projections.facts import feed
from agentlightning.projections.replica.command_context import Call, serve
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store import resources, views
from agentlightning.projections.store.store import EventLogStore

from ..store.tools import begin, claim, span, take_facts

LARGE = {"text": "x" * 1_000_000}
"""Beyond what an event carries itself."""


class Watched:
    """Notes which of the watched functions are called by a thread that holds the node's lock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lock: Any = None
        self.seen: set[str] = set()
        for owner, names in (
            (SqliteLog, ("read", "read_key")),
            (ArchiveIndex, ("get", "body", "flush", "counts")),
            (views, ("assemble",)),
            (resources, ("resources_out",)),
            (feed, ("facts_of",)),
            (resources.Worker, ("model_construct",)),
        ):
            for name in names:
                monkeypatch.setattr(owner, name, self.watching(name, getattr(owner, name)))

    def watching(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.lock is not None and self.lock._is_owned():
                self.seen.add(name)
            return function(*args, **kwargs)

        return watched


async def everything(store: EventLogStore) -> None:
    """Each method once and more, on large payloads, on what is hot and on what was archived."""
    await store.add_resources({"p": agl.PromptTemplate(template="x" * 1_000_000, engine="f-string")})
    done: list[agl.AttemptedRollout] = []
    for number in range(12):
        attempted = await begin(store, worker_id="w")
        await store.add_span(span(attempted))
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded", metadata={"n": number})
        done.append(attempted)
    assert done[0].rollout_id not in store.engine.node.state.rollouts
    made = await store.enqueue_rollout(LARGE, metadata={"a": 1})
    assert (await claim(store, "w")).input == LARGE
    await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=LARGE) for _ in range(2)])
    await store.dequeue_many_rollouts(limit=5)
    await store.start_rollout(LARGE)
    for rollout_id in (made.rollout_id, done[0].rollout_id):
        await store.get_rollout_by_id(rollout_id)
        await store.get_latest_attempt(rollout_id)
        await store.query_attempts(rollout_id)
        await store.query_spans(rollout_id, "latest")
        await store.query_rollouts([rollout_id])
        await store.get_next_span_sequence_id(rollout_id, (await store.query_attempts(rollout_id))[0].attempt_id)
        await store.wait_for_rollouts([rollout_id], timeout=0)
    await store.add_span(span(done[1]))
    await store.update_rollout(done[1].rollout_id, metadata={"late": True})
    await store.start_attempt(done[2].rollout_id)
    await store.query_rollouts(sort_by="start_time")
    await store.query_workers()
    await store.update_worker("w", {"cpu": 1})
    await store.query_resources()
    await store.statistics()
    store.report()
    await take_facts(store, 40, since=-1)
    store.engine.snapshot()
    assert store.engine._snapshotting is not None
    await asyncio.to_thread(store.engine._snapshotting.join)


async def test_nothing_under_the_lock_reads_or_makes_what_callers_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    settings = StoreSettings(archive_after=8)
    with EventLogStore(SqliteLog(tmp_path / "log.db"), settings=settings, index_path=str(tmp_path / "index")) as store:
        watched.lock = store.engine.node.lock
        await everything(store)
        watched.lock = None
    assert watched.seen == set()


async def test_a_slow_fetch_delays_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = SqliteLog.read_key
    fetching = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(self: SqliteLog, topic: str, *args: Any, **kwargs: Any) -> Any:
        if topic == BLOBS:
            loop.call_soon_threadsafe(fetching.set)
            time.sleep(1.0)
        return reading(self, topic, *args, **kwargs)

    with EventLogStore(SqliteLog(tmp_path / "log.db")) as store:
        made = await store.enqueue_rollout(LARGE)
        monkeypatch.setattr(SqliteLog, "read_key", slow)
        shown = asyncio.ensure_future(store.get_rollout_by_id(made.rollout_id))
        await fetching.wait()
        began = time.monotonic()
        await store.enqueue_rollout("small")
        assert time.monotonic() - began < 0.7 and not shown.done()
        found = await shown
        assert found is not None and found.input == LARGE


async def test_a_repeated_update_of_the_latest_attempt_is_about_the_one_that_it_was_about() -> None:
    from agentlightning.projections.store.memory_store import InMemoryLightningStore

    with InMemoryLightningStore() as store:
        first = await begin(store, agl.RolloutConfig(max_attempts=2, retry_condition=["failed"]))
        call = Call(uuid7_hex(), repeatable=True)

        async def update() -> agl.Attempt:
            serve(call)
            return await store.update_attempt(first.rollout_id, "latest", status="failed")

        told = await asyncio.ensure_future(update())
        second = await claim(store)
        assert second.rollout_id == first.rollout_id
        again = await asyncio.ensure_future(update())
        assert (again.attempt_id, again.status) == (told.attempt_id, "failed")
        latest = await store.get_latest_attempt(first.rollout_id)
        assert latest is not None and latest.last_heartbeat_time is None, "nobody showed a sign of life of it"
