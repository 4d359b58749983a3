"""Time as the store sees it: counted in turns, kept in the log, and told apart by who sent a heartbeat."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.core.fold.state import Attempt, Rollout
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.projections.liveness.heartbeats import OpenAttempt
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.memory_store import InMemoryLightningStore

from ..store.tools import attempt_of, begin, claim, pass_time, settled, status_of, store_on


async def test_18_a_timekeeper_that_restarts_every_two_minutes_still_fires_after_ten() -> None:
    log, clock = MemoryLog(), ManualClock()
    passed = 0
    with store_on(log, clock=clock) as store:
        attempted = await begin(store, agl.RolloutConfig(timeout_seconds=600))
    while passed < 1200:
        with store_on(log, clock=clock) as store:
            for _ in range(12):
                await pass_time(store.engine, clock, 10)
                passed += 10
                if await status_of(store, attempted.rollout_id) == "failed":
                    assert 600 <= passed <= 660
                    log.close()
                    return
    pytest.fail("the timeout never fired")


async def test_19_a_frozen_timekeeper_counts_two_ticks() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        config = agl.RolloutConfig(timeout_seconds=30, unresponsive_seconds=15)
        attempted = await begin(store, config, "w")
        await store.update_worker("w", incarnation="i")
        held = await start_with_incarnation(store, "w2", "i")
        for _ in range(3):
            clock.advance(3600)
            with store.engine.node.lock:
                store.engine.expiry.turn()
            await settled(store.engine)
        assert await status_of(store, attempted.rollout_id) == "preparing"
        assert await status_of(store, held.rollout_id) == "preparing"
        await pass_time(store.engine, clock, 12)
        assert (await attempt_of(store, attempted.rollout_id)).status == "unresponsive"


async def start_with_incarnation(store: agl.LightningStore, worker_id: str, incarnation: str) -> agl.AttemptedRollout:
    """A claim by one life of a worker."""
    rollout = await store.enqueue_rollout("x")
    claimed = await claim(store, worker_id, incarnation=incarnation)
    assert claimed.rollout_id == rollout.rollout_id
    return claimed


async def test_20_two_timekeepers_do_not_make_time_run_faster() -> None:
    log, clock = MemoryLog(), ManualClock()
    with store_on(log, clock=clock, foreign_writers=True) as first, store_on(
        log, clock=clock, foreign_writers=True
    ) as second:
        attempted = await begin(first, agl.RolloutConfig(timeout_seconds=60))
        await second.wait_position(first.position())
        for second_passed in range(1, 80):
            clock.advance(1)
            with first.engine.node.lock, second.engine.node.lock:  # neither sees what the other one proposes
                first.engine.expiry.turn()
                second.engine.expiry.turn()
            await settled(first.engine)
            await settled(second.engine)
            if await status_of(first, attempted.rollout_id) == "failed":
                assert 60 <= second_passed <= 68
                break
        else:
            pytest.fail("the timeout never fired")
        await second.wait_position(first.position())
        await first.wait_position(second.position())
        assert first.fingerprint() == second.fingerprint()
    log.close()


async def test_21_of_two_workers_with_one_name_only_the_silent_one_is_lost() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        await store.update_worker("Worker-0", incarnation="one")
        await store.update_worker("Worker-0", incarnation="two")
        silent = await start_with_incarnation(store, "Worker-0", "one")
        alive = await start_with_incarnation(store, "Worker-0", "two")
        for _ in range(8):
            await pass_time(store.engine, clock, 2)
            await store.update_worker("Worker-0", incarnation="two")
        assert (await attempt_of(store, silent.rollout_id)).status == "unresponsive"
        assert await status_of(store, silent.rollout_id) == "requeuing"
        assert await status_of(store, alive.rollout_id) == "preparing"


async def test_a_lost_worker_costs_seconds_and_at_most_three_requeues() -> None:
    clock = ManualClock()
    settings = StoreSettings(worker_lost_seconds=5, lost_worker_retries=3)
    with InMemoryLightningStore(clock=clock, settings=settings) as store:
        rollout = await store.enqueue_rollout("a tutorial sets no config")
        for life in range(4):
            await store.update_worker("w", incarnation=f"life {life}")
            claimed = await claim(store, "w", incarnation=f"life {life}")
            assert (claimed.rollout_id, claimed.attempt.sequence_id) == (rollout.rollout_id, life + 1)
            await pass_time(store.engine, clock, 4)
            assert await status_of(store, rollout.rollout_id) == "preparing"
            await pass_time(store.engine, clock, 2)
            assert (await attempt_of(store, rollout.rollout_id, life + 1)).status == "unresponsive"
            assert await status_of(store, rollout.rollout_id) == ("requeuing" if life < 3 else "failed")


async def test_a_lost_worker_costs_none_of_max_attempts() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        config = agl.RolloutConfig(max_attempts=2, retry_condition=["failed"])
        rollout = await store.enqueue_rollout("x", config=config)
        await store.update_worker("w", incarnation="i")
        await claim(store, "w", incarnation="i")
        await pass_time(store.engine, clock, 12)
        for status in ("requeuing", "failed"):
            await claim(store)
            await store.update_attempt(rollout.rollout_id, "latest", status="failed")
            assert await status_of(store, rollout.rollout_id) == status


async def test_a_worker_that_never_sent_a_heartbeat_is_not_lost() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        attempted = await start_with_incarnation(store, "w", "i")
        await pass_time(store.engine, clock, 60)
        assert await status_of(store, attempted.rollout_id) == "preparing"


async def test_a_worker_that_died_together_with_the_store_is_lost_after_the_restart() -> None:
    log, clock = MemoryLog(), ManualClock()
    with store_on(log, clock=clock) as store:
        await store.update_worker("w", incarnation="i")
        attempted = await start_with_incarnation(store, "w", "i")
        alive = await start_with_incarnation(store, "w", "j")
    with store_on(log, clock=clock) as store:
        for _ in range(7):
            await pass_time(store.engine, clock, 2)
            await store.update_worker("w", incarnation="j")
        assert await status_of(store, attempted.rollout_id) == "requeuing"
        assert await status_of(store, alive.rollout_id) == "preparing"
    log.close()


async def test_a_claim_whose_answer_was_lost_goes_back_and_costs_no_attempt() -> None:
    from agentlightning.core.ids import uuid7_hex
    from agentlightning.projections.replica.command_context import Call, serve

    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        await store.enqueue_rollout("x")

        async def remote() -> agl.AttemptedRollout:
            serve(Call(uuid7_hex(), remote=True))
            return await claim(store, "w")

        lost = await asyncio.ensure_future(remote())
        await pass_time(store.engine, clock, 12)
        assert await status_of(store, lost.rollout_id) == "requeuing"
        kept = await asyncio.ensure_future(remote())
        assert (kept.rollout_id, kept.attempt.sequence_id) == (lost.rollout_id, 2)
        await store.update_worker("w", attempts=[(kept.rollout_id, kept.attempt.attempt_id)])
        await pass_time(store.engine, clock, 30)
        assert await status_of(store, kept.rollout_id) == "preparing"
        await store.update_attempt(kept.rollout_id, "latest", status="succeeded")
        assert await status_of(store, kept.rollout_id) == "succeeded"


async def test_an_open_attempt_without_deadline_writes_no_time_into_the_log() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        await begin(store)
        before = store.fingerprint()
        await pass_time(store.engine, clock, 120)
        assert store.fingerprint() == before


async def test_a_limit_that_is_set_while_an_attempt_runs_holds() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        attempted = await begin(store)
        await pass_time(store.engine, clock, 20)
        await store.update_rollout(attempted.rollout_id, config=agl.RolloutConfig(timeout_seconds=600))
        await pass_time(store.engine, clock, 20)
        await store.update_rollout(attempted.rollout_id, config=agl.RolloutConfig(timeout_seconds=60))
        assert await status_of(store, attempted.rollout_id) == "preparing"
        await pass_time(store.engine, clock, 46)
        assert await status_of(store, attempted.rollout_id) == "failed"


async def test_a_worker_whose_first_heartbeat_comes_late_is_lost_when_it_is_silent_after_it() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        attempted = await start_with_incarnation(store, "w", "i")
        await pass_time(store.engine, clock, 15)
        await store.update_worker("w", incarnation="i")
        await pass_time(store.engine, clock, 8)
        assert await status_of(store, attempted.rollout_id) == "preparing"
        await pass_time(store.engine, clock, 4)
        assert await status_of(store, attempted.rollout_id) == "requeuing"


async def test_a_turn_looks_at_those_attempts_only_that_may_be_due(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        expiry, looked = store.engine.expiry, list[str]()
        for seconds in (None, 30.0, 600.0):
            await begin(store, agl.RolloutConfig(timeout_seconds=seconds))
        await pass_time(store.engine, clock, 2)
        look = expiry._deadline

        def counted(watched: OpenAttempt, rollout: Rollout, attempt: Attempt) -> Any:
            looked.append(rollout.rollout_id)
            return look(watched, rollout, attempt)

        monkeypatch.setattr(expiry, "_deadline", counted)
        await pass_time(store.engine, clock, 20)
        assert not looked, "none of them can be due"
        await pass_time(store.engine, clock, 10)
        assert len(set(looked)) == 1
