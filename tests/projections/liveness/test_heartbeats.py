"""What the timekeeper looks after: everything that is open, also after a restart or a stay in the archive, and no more."""

from __future__ import annotations

import asyncio

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.core.ids import uuid7_hex
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.projections.liveness import heartbeats
from agentlightning.projections.replica.command_context import Call, serve
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.memory_store import InMemoryLightningStore

from ..store.tools import attempt_of, begin, claim, control_values, pass_time, settled, span, status_of, store_on

TIMED = agl.RolloutConfig(timeout_seconds=30)


async def test_an_attempt_that_was_archived_open_is_watched_again_when_it_comes_back() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock, settings=StoreSettings(archive_after=20)) as store:
        attempted = await begin(store, TIMED)
        await store.update_rollout(attempted.rollout_id, status="cancelled")
        for number in range(24):
            await store.enqueue_rollout(number)
        assert attempted.rollout_id not in store.engine.node.state.rollouts
        await pass_time(store.engine, clock, 2)
        assert not store.engine.heartbeats.open, "nobody looks after what is archived"
        await store.update_rollout(attempted.rollout_id, metadata={"back": True})
        assert (await attempt_of(store, attempted.rollout_id)).status == "preparing"
        await pass_time(store.engine, clock, 40)
        assert (await attempt_of(store, attempted.rollout_id)).status == "timeout"
        assert await status_of(store, attempted.rollout_id) == "cancelled"


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_superseded_attempt_that_is_open_expires_with_and_without_a_restart(restarts: bool) -> None:
    log, clock = MemoryLog(), ManualClock()
    with store_on(log, clock=clock) as store:
        attempted = await begin(store, TIMED)
        await store.start_attempt(attempted.rollout_id)
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
        if not restarts:
            await pass_time(store.engine, clock, 40)
    with store_on(log, clock=clock) as store:
        if restarts:
            await pass_time(store.engine, clock, 40)
        assert (await attempt_of(store, attempted.rollout_id, 1)).status == "timeout"
        assert await status_of(store, attempted.rollout_id) == "succeeded"
    log.close()


async def test_an_unconfirmed_claim_of_a_cancelled_rollout_is_let_be() -> None:
    """It cannot go back to the queue: asking for that again and again would fill the log."""
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        await store.enqueue_rollout("x")

        async def remote() -> agl.AttemptedRollout:
            serve(Call(uuid7_hex(), remote=True, repeatable=True))
            return await claim(store)

        attempted = await asyncio.ensure_future(remote())
        await store.update_rollout(attempted.rollout_id, status="cancelled")
        await pass_time(store.engine, clock, 30)
        before = len(control_values(store.engine.log))
        await pass_time(store.engine, clock, 60)
        assert len(control_values(store.engine.log)) == before


async def test_a_sign_of_life_after_the_end_is_shown_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "LATE_BEATS", 2)
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        ended = [await begin(store) for _ in range(3)]
        for one in ended:
            await store.update_attempt(one.rollout_id, "latest", status="succeeded")
        before, records = store.fingerprint(), len(control_values(store.engine.log))
        clock.advance(5)
        clock.jump(5)
        for one in ended:
            await store.add_span(span(one))
            attempt = await attempt_of(store, one.rollout_id)
            assert (attempt.status, attempt.last_heartbeat_time) == ("succeeded", clock.time())
        assert len(store.engine.heartbeats._late) == 2, "as many as fit are remembered"
        await settled(store.engine)
        assert (store.fingerprint(), len(control_values(store.engine.log))) == (before, records)
        told = await store.update_attempt(ended[2].rollout_id, "latest", last_heartbeat_time=7.0)
        assert told.last_heartbeat_time == 7.0
