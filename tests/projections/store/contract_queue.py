"""What every store promises about creating, queueing and claiming rollouts."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

import agentlightning as agl

from .tools import attempt_of, begin, claim, ids, span, status_of


class QueueContract:
    """Part of `StoreContract`."""

    async def test_enqueue_returns_a_plain_queued_rollout(self, store: agl.LightningStore) -> None:
        rollout = await store.enqueue_rollout({"q": [1, None, "x"]}, mode="val", metadata={"a": 1})
        assert type(rollout) is agl.Rollout
        assert re.fullmatch("ro-[0-9a-f]{12}", rollout.rollout_id)
        assert (rollout.input, rollout.mode, rollout.metadata) == ({"q": [1, None, "x"]}, "val", {"a": 1})
        assert rollout.status == "queuing" and rollout.end_time is None and rollout.resources_id is None
        assert rollout.config == agl.RolloutConfig()
        assert await store.get_latest_attempt(rollout.rollout_id) is None
        assert (await store.enqueue_rollout(None)).metadata == {}

    async def test_start_rollout_creates_and_claims_past_the_queue(self, store: agl.LightningStore) -> None:
        waiting = await store.enqueue_rollout("waits")
        started = await store.start_rollout("now", "train", None, agl.RolloutConfig(max_attempts=2), {"m": 1}, "w")
        assert started.status == started.attempt.status == "preparing"
        assert re.fullmatch("at-[0-9a-f]{8}", started.attempt.attempt_id)
        assert started.attempt.sequence_id == 1 and started.attempt.worker_id == "w"
        assert started.attempt.start_time == started.start_time
        assert started.config.max_attempts == 2 and started.metadata == {"m": 1} and started.mode == "train"
        worker = await store.get_worker_by_id("w")
        assert worker is not None and worker.status == "busy"
        assert (worker.current_rollout_id, worker.current_attempt_id) == (
            started.rollout_id, started.attempt.attempt_id,
        )  # fmt: skip
        assert (await claim(store)).rollout_id == waiting.rollout_id
        assert await store.dequeue_rollout() is None

    async def test_a_claim_for_a_run_gets_what_belongs_to_the_run_and_others_leave_runs_with_own_runners_alone(
        self, store: agl.LightningStore
    ) -> None:
        own = {"agl.run_id": "run-a", "agl.own_runners": True}
        first = await store.enqueue_rollout(1, metadata=own)
        open_to_all = await store.enqueue_rollout(2, metadata={"agl.run_id": "run-b"})
        free = await store.enqueue_rollout(3)
        second = await store.enqueue_rollout(4, metadata=own)
        assert await store.dequeue_rollout("w", run_id="run-c") is None
        claimed = [await store.dequeue_rollout("foreign") for _ in range(3)]
        assert ids([one for one in claimed if one is not None]) == ids([open_to_all, free]) and claimed[2] is None
        for_run = await store.dequeue_many_rollouts(limit=3, worker_id="w", run_id="run-a")
        assert ids(for_run) == ids([first, second])
        await store.update_attempt(first.rollout_id, "latest", status="failed")
        await store.update_rollout(first.rollout_id, status="queuing")
        assert await store.dequeue_rollout("foreign") is None  # a rollout that comes back is still of its run
        again = await store.dequeue_rollout("w", run_id="run-a")
        assert again is not None and again.rollout_id == first.rollout_id

    async def test_a_claim_that_waits_for_a_run_is_woken_by_a_rollout_of_that_run_only(
        self, store: agl.LightningStore
    ) -> None:
        own = {"agl.run_id": "run-a", "agl.own_runners": True}
        foreign = asyncio.ensure_future(store.dequeue_rollout("foreign", wait_seconds=20.0))
        await asyncio.sleep(0.05)
        bound = asyncio.ensure_future(store.dequeue_rollout("w", wait_seconds=20.0, run_id="run-a"))
        await asyncio.sleep(0.05)
        mine = await store.enqueue_rollout(1, metadata=own)
        got = await asyncio.wait_for(bound, 10.0)
        assert got is not None and got.rollout_id == mine.rollout_id and not foreign.done()
        free = await store.enqueue_rollout(2)
        other = await asyncio.wait_for(foreign, 10.0)
        assert other is not None and other.rollout_id == free.rollout_id

    async def test_a_rollout_whose_metadata_lie_in_blobs_is_claimed_for_a_run_too(
        self, store: agl.LightningStore
    ) -> None:
        large = await store.enqueue_rollout(1, metadata={"agl.run_id": "run-a", "text": "x" * 1_000_000})
        got = await store.dequeue_rollout("w", run_id="run-a")
        assert got is not None and got.rollout_id == large.rollout_id

    async def test_the_queue_is_first_in_first_out(self, store: agl.LightningStore) -> None:
        queued = [await store.enqueue_rollout(number) for number in range(5)]
        claimed = [await claim(store) for _ in queued]
        assert ids(claimed) == ids(queued)
        assert all(one.status == one.attempt.status == "preparing" for one in claimed)
        assert all(one.attempt.sequence_id == 1 for one in claimed)
        assert await store.dequeue_rollout() is None

    async def test_enqueue_many_keeps_the_order(self, store: agl.LightningStore) -> None:
        made = await store.enqueue_many_rollouts(
            [agl.EnqueueRolloutRequest(input=number, metadata={"n": number}) for number in range(20)]
        )
        assert [one.input for one in made] == list(range(20))
        assert [one.metadata for one in made] == [{"n": number} for number in range(20)]
        assert ids(await store.dequeue_many_rollouts(limit=100)) == ids(made)
        assert list(await store.enqueue_many_rollouts([])) == []

    async def test_enqueue_many_of_many_bytes_is_split_and_stays_in_order(self, store: agl.LightningStore) -> None:
        made = await store.enqueue_many_rollouts(
            [agl.EnqueueRolloutRequest(input=str(number) * 300_000) for number in range(8)]
        )
        assert len(set(ids(made))) == 8
        claimed = await store.dequeue_many_rollouts(limit=8)
        assert [one.input[0] for one in claimed] == list("01234567")

    async def test_dequeue_many_takes_up_to_the_limit(self, store: agl.LightningStore) -> None:
        queued = await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in range(3)])
        assert list(await store.dequeue_many_rollouts(limit=0)) == []
        assert list(await store.dequeue_many_rollouts(limit=-1)) == []
        assert ids(await store.dequeue_many_rollouts(limit=2, worker_id="w")) == ids(queued[:2])
        worker = await store.get_worker_by_id("w")
        assert worker is not None and worker.current_rollout_id == queued[1].rollout_id
        assert ids(await store.dequeue_many_rollouts()) == ids(queued[2:])
        assert list(await store.dequeue_many_rollouts(limit=5)) == []

    async def test_a_waiting_dequeue_gets_what_comes_next(self, store: agl.LightningStore) -> None:
        first = asyncio.ensure_future(store.dequeue_rollout("a", wait_seconds=10))
        second = asyncio.ensure_future(store.dequeue_rollout("b", wait_seconds=10))
        await asyncio.sleep(0.05)
        assert not first.done() and not second.done()
        queued = [await store.enqueue_rollout(1), await store.enqueue_rollout(2)]
        claimed = [one for one in await asyncio.wait_for(asyncio.gather(first, second), 5) if one is not None]
        assert sorted(ids(claimed)) == sorted(ids(queued))
        assert await store.dequeue_rollout(wait_seconds=0.02) is None

    async def test_a_cancelled_dequeue_loses_no_rollout(self, store: agl.LightningStore) -> None:
        waiting = asyncio.ensure_future(store.dequeue_rollout(wait_seconds=10))
        other = asyncio.ensure_future(store.dequeue_rollout(wait_seconds=10))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await store.enqueue_rollout(1)
        assert (await asyncio.wait_for(other, 5)) is not None

    async def test_the_same_command_id_claims_the_same_rollout(self, store: agl.LightningStore) -> None:
        await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in range(3)])
        once = await claim(store, command_id="0" * 31 + "1")
        again = await claim(store, command_id="0" * 31 + "1")
        assert (again.rollout_id, again.attempt.attempt_id) == (once.rollout_id, once.attempt.attempt_id)
        assert len(await store.dequeue_many_rollouts(limit=10)) == 2

    async def test_latest_resources_are_bound_when_the_rollout_is_made(self, store: agl.LightningStore) -> None:
        assert (await store.enqueue_rollout(0)).resources_id is None
        first = await store.add_resources({"p": "one"})
        early = await store.enqueue_rollout(1)
        await store.add_resources({"p": "two"})
        assert early.resources_id == first.resources_id
        assert (await claim(store)).resources_id is None
        assert (await claim(store)).resources_id == first.resources_id
        chosen = await store.enqueue_rollout(2, resources_id=first.resources_id)
        assert chosen.resources_id == first.resources_id
        many = await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in range(3)])
        assert len({one.resources_id for one in many}) == 1

    async def test_start_attempt_in_any_state(self, store: agl.LightningStore) -> None:
        with pytest.raises(ValueError, match="Rollout ro-missing not found"):
            await store.start_attempt("ro-missing")
        rollout = await store.enqueue_rollout("x")
        first = await store.start_attempt(rollout.rollout_id, "w")
        assert (first.status, first.attempt.sequence_id, first.attempt.worker_id) == ("preparing", 1, "w")
        assert await store.dequeue_rollout() is None, "the queue does not hold a rollout that was started outright"
        second = await store.start_attempt(rollout.rollout_id)
        assert second.attempt.sequence_id == 2, "max_attempts does not limit what somebody asks for"
        await store.update_attempt(rollout.rollout_id, second.attempt.attempt_id, status="succeeded")
        third = await store.start_attempt(rollout.rollout_id)
        assert (third.status, third.end_time, third.attempt.sequence_id) == ("preparing", None, 3)

    async def test_returned_models_are_copies(self, store: agl.LightningStore) -> None:
        metadata: dict[str, Any] = {"tags": ["a"]}
        config = agl.RolloutConfig(retry_condition=["failed"])
        task = {"list": [1]}
        rollout = await store.enqueue_rollout(task, config=config, metadata=metadata)
        metadata["tags"].append("b")
        config.retry_condition.append("timeout")
        task["list"].append(2)
        assert rollout.metadata is not None
        rollout.metadata["tags"].append("c")
        rollout.config.retry_condition.clear()
        kept = await store.get_rollout_by_id(rollout.rollout_id)
        assert kept is not None
        assert (kept.metadata, kept.input) == ({"tags": ["a"]}, {"list": [1]})
        assert kept.config.retry_condition == ["failed"]
        claimed = await claim(store)
        held = await attempt_of(store, rollout.rollout_id)
        await store.update_attempt(rollout.rollout_id, claimed.attempt.attempt_id, status="failed")
        assert held.status == "preparing"

    async def test_bad_values_are_refused_and_change_nothing(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        rollout_id = attempted.rollout_id
        for call in (
            lambda: store.enqueue_rollout(1, mode="practice"),  # type: ignore[arg-type]
            lambda: store.start_rollout(1, mode="practice"),  # type: ignore[arg-type]
            lambda: store.update_rollout(rollout_id, status="queueing", input="changed"),  # type: ignore[arg-type]
            lambda: store.update_rollout(rollout_id, status=None, input="changed"),  # type: ignore[arg-type]
            lambda: store.update_rollout(rollout_id, config=None, input="changed"),  # type: ignore[arg-type]
            lambda: store.update_rollout(rollout_id, mode="practice", input="changed"),  # type: ignore[arg-type]
            lambda: store.update_attempt(rollout_id, "latest", status="done", metadata={"x": 1}),  # type: ignore[arg-type]
        ):
            with pytest.raises(ValueError):
                await call()
        kept = await store.get_rollout_by_id(rollout_id)
        assert kept is not None and (kept.input, kept.status) == ("task", "preparing")
        assert (await attempt_of(store, rollout_id)).status == "preparing"
        assert (await store.query_rollouts()).total == 1

    async def test_any_json_comes_back_as_it_was(self, store: agl.LightningStore) -> None:
        for value in (None, 0, -1.5, 2**63, "", "é\u2028", [], {}, {"a": [{"b": None}]}, "x" * 1_000_000):
            rollout = await store.enqueue_rollout(value)
            kept = await store.get_rollout_by_id(rollout.rollout_id)
            assert kept is not None and kept.input == value

    async def test_a_rollout_that_was_taken_from_the_queue_is_not_handed_out(self, store: agl.LightningStore) -> None:
        cancelled, alive = await store.enqueue_rollout(1), await store.enqueue_rollout(2)
        await store.update_rollout(cancelled.rollout_id, status="cancelled")
        assert (await claim(store)).rollout_id == alive.rollout_id
        assert await store.dequeue_rollout() is None
        assert await status_of(store, cancelled.rollout_id) == "cancelled"

    async def test_spans_make_a_claimed_rollout_run(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        await store.add_span(span(attempted))
        assert await status_of(store, attempted.rollout_id) == "running"
        attempt = await attempt_of(store, attempted.rollout_id)
        assert attempt.status == "running" and attempt.last_heartbeat_time is not None
