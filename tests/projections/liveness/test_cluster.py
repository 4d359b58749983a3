"""Several nodes on one log keep time together: they share signs of life, one leads, and who cannot hear or lags holds still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.core.events import codec
from agentlightning.core.events.schema import AttemptExpired, TimePassed
from agentlightning.core.log.interface import Log, Record, Subscription
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL, LIVENESS
from agentlightning.projections.store.store import EventLogStore

from ..store.logs import HeldLog
from ..store.tools import (
    Unclosed,
    attempt_of,
    begin,
    claim,
    control_values,
    pass_time,
    settled,
    span,
    status_of,
    store_on,
)


async def until(happened: Callable[[], bool], what: str) -> None:
    for _ in range(2000):
        if happened():
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"never: {what}")


async def leader_of(*stores: EventLogStore) -> EventLogStore:
    """The store that leads, once all have heard from the group."""
    await until(lambda: sum(led(store) for store in stores) == 1, "one leads")
    return next(store for store in stores if led(store))


def led(store: EventLogStore) -> bool:
    peers = store.engine.cluster
    assert peers is not None
    return peers.leadership.leads


def freeze(store: EventLogStore) -> None:
    """As SIGSTOP for its timekeeper: it stays in the group, where nobody has noticed yet."""
    store.engine.expiry.close()


async def turn(store: EventLogStore, clock: ManualClock, seconds: int) -> None:
    """Let time pass for a node that may not hear itself."""
    for _ in range(seconds):
        clock.advance(1)
        with store.engine.node.lock:
            store.engine.expiry.turn()
        await until(lambda: not store.engine.node.busy, "proposals are answered")
        await asyncio.sleep(0.002)


def writers_of(log: Log, *kinds: type) -> list[str]:
    return [one.writer for one in map(codec.decode, control_values(log)) if isinstance(one.event, kinds)]


async def test_21_what_one_node_heard_counts_at_the_others() -> None:
    log, clock = MemoryLog(), ManualClock()
    with store_on(log, clock=clock, foreign_writers=True) as heard, store_on(
        log, clock=clock, foreign_writers=True
    ) as other:
        await leader_of(heard, other)
        freeze(heard)
        config = agl.RolloutConfig(unresponsive_seconds=8)
        await heard.enqueue_rollout("its worker dies")
        await heard.update_worker("Worker-0", incarnation="one")
        await heard.update_worker("Worker-0", incarnation="two")
        silent = await claim(heard, "Worker-0", incarnation="one")
        await heard.enqueue_rollout("it shows spans", config=config)
        alive = await claim(heard, "Worker-0", incarnation="two")
        await other.wait_position(heard.position())
        for _ in range(16):
            clock.advance(2)
            await heard.add_span(span(alive))
            await heard.update_worker("Worker-0", incarnation="two")
            with heard.engine.node.lock:  # its keeper is frozen, its voice is not
                heard.engine.cluster.gossip.report(clock.monotonic())
            await settled(heard.engine)
            await asyncio.sleep(0.02)
            await pass_time(other.engine, clock, 0)
        assert (await attempt_of(other, silent.rollout_id)).status == "unresponsive"
        assert (await attempt_of(other, alive.rollout_id)).status == "running"
        shown = (await attempt_of(other, alive.rollout_id)).last_heartbeat_time
        assert shown is not None and clock.time() - shown <= 4
        worker = await other.get_worker_by_id("Worker-0")
        assert worker is not None and worker.last_heartbeat_time == clock.time()
        assert set(writers_of(log, AttemptExpired)) == {other.engine.node.writer}
    log.close()


async def test_signs_of_life_cost_one_record_a_second_whatever_is_heard() -> None:
    log, clock = MemoryLog(), ManualClock()
    with store_on(log, clock=clock, foreign_writers=True) as store:
        await leader_of(store)
        attempted = await begin(store)
        before = log.ends(LIVENESS, 0)[1]
        for _ in range(10):
            for _ in range(20):
                await store.add_span(span(attempted))
            await pass_time(store.engine, clock, 1)
        assert log.ends(LIVENESS, 0)[1] - before <= 11
    log.close()


async def test_a_log_with_one_writer_has_no_group_and_no_beats() -> None:
    log, clock = MemoryLog(), ManualClock()
    with store_on(log, clock=clock) as store:
        assert store.engine.cluster is None and store.engine.heartbeats.observed_here is None
        await begin(store, agl.RolloutConfig(timeout_seconds=60))
        await pass_time(store.engine, clock, 10)
        assert log.ends(LIVENESS, 0)[1] == 0
    log.close()


async def test_19_a_node_that_does_not_hear_itself_counts_no_silence() -> None:
    inner, clock = MemoryLog(), ManualClock()
    log = HeldLog(inner, LIVENESS)
    with store_on(log, clock=clock, foreign_writers=True) as store:
        await leader_of(store)
        timed = await begin(store, agl.RolloutConfig(timeout_seconds=40))
        silent = await begin(store, agl.RolloutConfig(unresponsive_seconds=8))
        await store.update_worker("w", incarnation="i")
        rollout = await store.enqueue_rollout("lost with its worker")
        await claim(store, "w", incarnation="i")
        log.held = True
        await turn(store, clock, 60)
        assert (await attempt_of(store, timed.rollout_id)).status == "timeout", "time passes, whoever is heard"
        assert await status_of(store, silent.rollout_id) == "preparing"
        assert await status_of(store, rollout.rollout_id) == "preparing"
        log.release()
        await turn(store, clock, 14)
        assert (await attempt_of(store, silent.rollout_id)).status == "unresponsive"
        assert await status_of(store, rollout.rollout_id) == "requeuing"
    inner.close()


async def test_19_a_broken_feed_is_mended_and_nobody_was_expired() -> None:
    class Breaking(Unclosed):
        broken: Callable[[], None]

        def follow(self, topic: str, partition: int, offset: int, on_records: Any, on_problem: Any) -> Subscription:
            subscription = self._log.follow(topic, partition, offset, on_records, on_problem)
            if topic == LIVENESS:
                self.broken = lambda: (subscription.close(), on_problem(agl.LogError("gone")))[0]
            return subscription

    inner, clock = MemoryLog(), ManualClock()
    log = Breaking(inner)
    with store_on(log, clock=clock, foreign_writers=True) as store:
        await leader_of(store)
        held = await begin(store, agl.RolloutConfig(unresponsive_seconds=8))
        signs = store.engine.cluster.gossip
        await pass_time(store.engine, clock, 0)
        log.broken()
        assert not signs.connected(clock.monotonic())
        await until(lambda: signs.connected(clock.monotonic()), "the feed is mended")
        await pass_time(store.engine, clock, 6)
        assert await status_of(store, held.rollout_id) == "preparing"
        await pass_time(store.engine, clock, 4)
        assert (await attempt_of(store, held.rollout_id)).status == "unresponsive"
    inner.close()


async def test_20_the_leader_acts_at_once_and_another_after_a_grace() -> None:
    seen: dict[str, int] = {}
    for frozen in (False, True):
        log, clock = MemoryLog(), ManualClock()
        with store_on(log, clock=clock, foreign_writers=True) as one, store_on(
            log, clock=clock, foreign_writers=True
        ) as two:
            leader = await leader_of(one, two)
            other = two if leader is one else one
            attempted = await begin(one, agl.RolloutConfig(timeout_seconds=20))
            await two.wait_position(one.position())
            if frozen:
                freeze(leader)
            for second in range(1, 60):
                clock.advance(1)
                for store in (one, two):
                    with store.engine.node.lock:
                        if store is other or not frozen:
                            store.engine.expiry.turn()
                    await settled(store.engine)
                if await status_of(other, attempted.rollout_id) == "failed":
                    seen[str(frozen)] = second
                    break
            writers = set(writers_of(log, TimePassed, AttemptExpired))
            assert writers == {(other if frozen else leader).engine.node.writer}
        log.close()
    assert 20 <= seen["False"] <= 21 and 25 <= seen["True"] <= 27, seen


async def test_20_who_leads_leaves_and_another_leads() -> None:
    log, clock = MemoryLog(), ManualClock()
    with store_on(log, clock=clock, foreign_writers=True) as one:
        await leader_of(one)
        with store_on(log, clock=clock, foreign_writers=True) as two:
            await until(lambda: two.engine.cluster.leadership.joined.is_set(), "the second joins")
            assert led(one) and not led(two)
            one.close()
            await leader_of(two)
    log.close()


async def test_20_a_node_that_lags_does_not_act() -> None:
    inner, clock = MemoryLog(), ManualClock()
    log = HeldLog(inner, CONTROL)
    with store_on(log, clock=clock, foreign_writers=True) as lagging:
        await leader_of(lagging)
        attempted = await begin(lagging, agl.RolloutConfig(timeout_seconds=20))
        with store_on(inner, clock=clock, foreign_writers=True) as other:
            freeze(other)
            log.held = True
            await other.enqueue_rollout("not seen there")
            await turn(lagging, clock, 40)
            assert lagging.engine.node.writer not in writers_of(inner, TimePassed, AttemptExpired)
            log.release()
            await turn(lagging, clock, 5)
            assert await status_of(lagging, attempted.rollout_id) == "failed"
    inner.close()


async def test_18_nodes_that_restart_every_two_minutes_still_fire_after_ten() -> None:
    log, clock = MemoryLog(), ManualClock()
    passed = 0
    with store_on(log, clock=clock, foreign_writers=True) as store:
        attempted = await begin(store, agl.RolloutConfig(timeout_seconds=600))
    while passed < 1200:
        with store_on(log, clock=clock, foreign_writers=True) as one, store_on(
            log, clock=clock, foreign_writers=True
        ) as two:
            await leader_of(one, two)
            for _ in range(60):
                clock.advance(2)
                passed += 2
                for store in (one, two):
                    with store.engine.node.lock:
                        store.engine.expiry.turn()
                    await settled(store.engine)
                if await status_of(one, attempted.rollout_id) == "failed":
                    assert 600 <= passed <= 660
                    log.close()
                    return
    pytest.fail("the timeout never fired")


def test_foreign_records_in_the_liveness_topic_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    log = MemoryLog()
    with store_on(log, foreign_writers=True) as store:
        signs: Any = store.engine.cluster.gossip
        for kind in ("node.beat", "worker.heartbeat"):
            headers = (("t", kind), ("node", "x"))
            signs._take([Record(LIVENESS, 0, 0, "x", b"\xc1", 0, headers)])
        assert caplog.text.count("cannot be read") == 2
    log.close()
