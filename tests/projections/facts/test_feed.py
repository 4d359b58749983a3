"""Facts: from any position, over restarts, once each and in order; and waiting that costs nothing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.errors import LogClosed
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.sqlite import SqliteLog
from agentlightning.core.model.rollout import Fact
from agentlightning.projections.facts import feed
from agentlightning.projections.facts.derived_topic import DerivedTopic
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.projections.store.store import EventLogStore

from ..store.logs import CountingLog
from ..store.tools import begin, store_on, take_facts


async def _write(store: agl.LightningStore, rollouts: int) -> None:
    for _ in range(rollouts):
        attempted = await begin(store)
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")


async def test_28_a_subscription_resumes_at_any_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at positions that are older than what is in memory, and across the border while others write on."""
    monkeypatch.setattr(feed, "KEPT_RECORDS", 32)
    monkeypatch.setattr(feed, "REFOLD_RECORDS", 7)
    monkeypatch.setattr(feed, "CHUNK", 5)
    log = MemoryLog()
    with store_on(log) as store:
        await _write(store, 20)
        everything = await take_facts(store, 101, since=-1)
    with store_on(log) as store:
        await _write(store, 1)
        assert await take_facts(store, 101, since=-1) == everything
        for start in range(0, 95, 9):
            since = everything[start].position
            expected = [fact for fact in everything if fact.position > since]
            assert await take_facts(store, len(expected), since=since) == expected
        slow: list[Fact] = []

        async def read_slowly() -> None:
            async for fact in store.subscribe(since=-1):
                slow.append(fact)
                await asyncio.sleep(0)
                if len(slow) == 1 + 5 * 51:
                    return

        reading = asyncio.ensure_future(read_slowly())
        await _write(store, 30)
        await asyncio.wait_for(reading, 10)
        assert [fact.position for fact in slow] == sorted(fact.position for fact in slow)
        assert len({fact.id for fact in slow}) == len(slow)
    log.close()


async def test_a_fact_has_the_same_id_whoever_delivers_it() -> None:
    log = MemoryLog()
    with store_on(log) as store:
        await _write(store, 3)
        live = await take_facts(store, 15, since=-1)
    with store_on(log) as store:
        assert await take_facts(store, 15, since=-1) == live
        assert {fact.log_id for fact in live} == {log.log_id}
        completed = await take_facts(store, 3, types=["rollout.completed"], since=-1)
        assert [fact.data["status"] for fact in completed] == ["succeeded"] * 3
    log.close()


async def test_the_end_of_a_rollout_carries_what_a_subscriber_needs() -> None:
    """Equal when it is derived from the log again; what a rollout does not have is left out."""
    log = MemoryLog()
    with store_on(log) as store:
        bound = await store.add_resources({"prompt": agl.PromptTemplate(template="x", engine="f-string")})
        for task in ("one", "two", "one"):
            await store.enqueue_rollout(task, metadata={"agl.run_id": "run-1"})
            attempted = await store.dequeue_rollout(worker_id="worker-1")
            assert attempted is not None
            await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
        plain = await store.enqueue_rollout("three", resources_id=bound.resources_id)
        await store.update_rollout(plain.rollout_id, status="cancelled")
        facts = await take_facts(store, 4, types=["rollout.completed"], since=-1)
    data = [fact.data for fact in facts]
    assert [(one["status"], one.get("run_id"), one.get("worker_id")) for one in data] == [
        *[("succeeded", "run-1", "worker-1")] * 3,
        ("cancelled", None, None),
    ]
    assert [(one["resources_id"], one["resources_version"]) for one in data] == [(bound.resources_id, 1)] * 4
    assert data[0]["task_digest"] == data[2]["task_digest"] != data[1]["task_digest"]
    assert all(one["seconds"] >= 0 for one in data[:3]) and "seconds" not in data[3]
    derived = [json.loads(record.value) for record in DerivedTopic(log, "facts").read()]
    with store_on(log) as store:
        assert await take_facts(store, 4, types=["rollout.completed"], since=-1) == facts
    assert [one["data"] for one in derived if one["type"] == "rollout.completed"] == data
    log.close()


async def test_a_subscription_begins_when_it_is_asked_for() -> None:
    with InMemoryLightningStore() as store:
        await store.enqueue_rollout("before")
        facts = store.subscribe(["rollout.enqueued"])
        after = await store.enqueue_rollout("after")
        fact = await asyncio.wait_for(facts.__anext__(), 5)
        assert fact.rollout_id == after.rollout_id


async def test_waiters_learn_that_the_store_closed() -> None:
    store = InMemoryLightningStore()
    attempted = await begin(store)
    facts = store.subscribe()
    waiting: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(store.wait_for_rollouts([attempted.rollout_id])),
        asyncio.ensure_future(store.dequeue_rollout(wait_seconds=60)),
        asyncio.ensure_future(facts.__anext__()),
    ]
    await asyncio.sleep(0.02)
    await asyncio.to_thread(store.close)
    for result in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5):
        assert isinstance(result, LogClosed)


async def test_closing_finishes_what_is_under_way(tmp_path: Path) -> None:
    """Who was told of an error is not in the log, who was not is: also where the disk takes its time."""

    def slowly(db: sqlite3.Connection) -> None:
        time.sleep(0.05)
        db.execute("COMMIT")

    path = tmp_path / "log.db"
    store = EventLogStore(SqliteLog(path, commit=slowly))
    commands = [asyncio.ensure_future(store.enqueue_rollout(number)) for number in range(50)]
    await asyncio.sleep(0.01)
    await asyncio.to_thread(store.close)
    results = await asyncio.gather(*commands, return_exceptions=True)
    told = {one.rollout_id for one in results if isinstance(one, agl.Rollout)}
    with EventLogStore(SqliteLog(path)) as again:
        assert {one.rollout_id for one in await again.query_rollouts()} == told
    assert told


async def test_a_thousand_idle_waiters_and_subscribers_cause_no_query_and_no_timer() -> None:
    log = CountingLog(MemoryLog())
    loop = asyncio.get_running_loop()
    with EventLogStore(log) as store:  # type: ignore[arg-type]
        rollout = await store.enqueue_rollout("x")
        await store.dequeue_rollout("w")
        waiting: list[asyncio.Future[Any]] = []
        for number in range(1000):
            facts = store.subscribe()
            waiting += [
                asyncio.ensure_future(store.wait_for_rollouts([rollout.rollout_id])),
                asyncio.ensure_future(store.dequeue_rollout(f"w{number}", wait_seconds=3600)),
                asyncio.ensure_future(facts.__anext__()),
            ]
        await asyncio.sleep(0.5)
        assert not any(one.done() for one in waiting)
        fired = 0
        original = asyncio.events.Handle._run

        def counted(handle: asyncio.Handle) -> None:
            nonlocal fired
            fired += 1
            original(handle)

        turns = 0
        turn = store.engine.expiry.turn

        def counted_turn() -> float | None:
            nonlocal turns
            turns += 1
            return turn()

        store.engine.expiry.turn = counted_turn  # type: ignore[method-assign]
        asyncio.events.Handle._run = counted  # type: ignore[method-assign]
        before, cpu = log.calls, time.process_time()
        try:
            await asyncio.sleep(5)
        finally:
            asyncio.events.Handle._run = original  # type: ignore[method-assign]
        assert log.calls == before, "nobody asked the log"
        assert fired <= 5, "no callback or timer of a waiter ran in the loop"
        assert turns <= 6, "the timekeeper looks at open attempts once a second, however many wait"
        assert time.process_time() - cpu < 1
        for number in range(1000):
            await store.enqueue_rollout(number)
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        await asyncio.wait_for(asyncio.gather(*waiting), 10)
        assert loop.is_running()


async def test_subscribers_far_back_share_a_few_refolds_and_each_gets_everything_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "KEPT_RECORDS", 4)
    monkeypatch.setattr(feed, "REFOLD_RECORDS", 5)
    monkeypatch.setattr(feed, "MAX_REFOLDS", 2)
    monkeypatch.setattr(feed, "UNUSED_SECONDS", 0.0)
    monkeypatch.setattr(feed, "TURN_SECONDS", 0.001)
    store: Any = InMemoryLightningStore()
    try:
        made = [(await store.enqueue_rollout(number)).rollout_id for number in range(30)]
        readers = [store.subscribe(["rollout.enqueued"], since=-1) for _ in range(6)]
        seen: list[list[str | None]] = [[] for _ in readers]
        refolds = store.engine.facts._refolds._refolds
        for _ in made:  # side by side, so that each is dropped again and again while the others have their turn
            for reader, found in zip(readers, seen):
                found.append((await anext(reader)).rollout_id)
                assert len(refolds) <= 2
        assert seen == [made] * 6
        for reader in readers:
            await reader.aclose()
        assert not refolds
    finally:
        store.close()
