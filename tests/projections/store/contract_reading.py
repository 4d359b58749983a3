"""What every store promises about queries over rollouts, waiting for them, and subscribing to facts."""

from __future__ import annotations

import asyncio
import time

import pytest

import agentlightning as agl

from .tools import begin, claim, ids, take_facts


class ReadingContract:
    """Part of `StoreContract`."""

    async def test_rollouts_carry_their_latest_attempt(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        await store.start_attempt(attempted.rollout_id)
        queued = await store.enqueue_rollout("later")
        with_attempt, plain = await store.query_rollouts()
        assert isinstance(with_attempt, agl.AttemptedRollout) and with_attempt.attempt.sequence_id == 2
        assert type(plain) is agl.Rollout and plain == queued
        assert await store.get_rollout_by_id("ro-x") is None
        assert await store.get_latest_attempt("ro-x") is None
        assert (await store.query_attempts("ro-x")).total == 0

    async def test_rollouts_are_filtered(self, store: agl.LightningStore) -> None:
        made = [await store.enqueue_rollout(number) for number in range(4)]
        one = await claim(store)
        await store.update_attempt(one.rollout_id, "latest", status="succeeded")

        async def found(**filters: object) -> list[str]:
            return ids(await store.query_rollouts(**filters))  # type: ignore[arg-type]

        everything = ids(made)
        assert await found() == everything
        assert await found(filter_logic="or") == everything
        assert await found(status_in=["succeeded"]) == everything[:1]
        assert await found(rollout_id_in=[everything[2], everything[1]]) == everything[1:3]
        assert await found(rollout_id_contains=everything[3][4:]) == everything[3:]
        assert await found(status_in=["queuing"], rollout_id_in=everything[:2]) == everything[1:2]
        assert await found(status_in=["succeeded"], rollout_id_in=everything[3:], filter_logic="or") == [
            everything[0], everything[3],
        ]  # fmt: skip
        assert await found(status_in=[]) == []
        assert ids(await store.query_rollouts(everything[:2])) == everything[:2], "positional, as the tutorial does"
        with pytest.warns(DeprecationWarning):
            assert await found(status=["succeeded"]) == everything[:1]

    async def test_rollouts_are_sorted_and_paged(self, store: agl.LightningStore) -> None:
        made = ids([await store.enqueue_rollout(number) for number in range(5)])
        await store.update_rollout(made[3], status="failed")
        page = await store.query_rollouts(limit=2, offset=1)
        assert (ids(page), page.total, page.limit, page.offset) == (made[1:3], 5, 2, 1)
        assert ids(await store.query_rollouts(offset=9)) == []
        assert ids(await store.query_rollouts(sort_by="rollout_id")) == sorted(made)
        assert ids(await store.query_rollouts(sort_by="end_time"))[0] == made[3]
        assert ids(await store.query_rollouts(sort_by="end_time", sort_order="desc"))[0] == made[3]
        for wrong in ({"sort_by": "nonsense"}, {"sort_by": "status", "sort_order": "up"}, {"limit": -2}):
            with pytest.raises(ValueError):
                await store.query_rollouts(**wrong)  # type: ignore[arg-type]

    async def test_attempts_are_sorted_and_paged(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        for _ in range(3):
            await store.start_attempt(attempted.rollout_id)
        numbers = [one.sequence_id for one in await store.query_attempts(attempted.rollout_id, limit=2, offset=1)]
        assert numbers == [2, 3]
        down = await store.query_attempts(attempted.rollout_id, sort_order="desc")
        assert [one.sequence_id for one in down] == [4, 3, 2, 1] and down.total == 4
        latest = await store.get_latest_attempt(attempted.rollout_id)
        assert latest == down[0]

    async def test_waiting_returns_what_is_over_in_the_order_asked(self, store: agl.LightningStore) -> None:
        made = ids([await store.enqueue_rollout(number) for number in range(3)])
        waiting = asyncio.ensure_future(store.wait_for_rollouts([made[2], "ro-x", made[0]]))
        for rollout_id in (made[0], made[2]):
            await asyncio.sleep(0.02)
            assert not waiting.done()
            await store.update_rollout(rollout_id, status="succeeded")
        done = await asyncio.wait_for(waiting, 5)
        assert ids(done) == [made[2], made[0]]
        assert all(type(one) is agl.Rollout for one in done)
        assert ids(await store.wait_for_rollouts([made[0], made[0]])) == [made[0], made[0]]

    async def test_waiting_gives_up_at_its_timeout(self, store: agl.LightningStore) -> None:
        made = ids([await store.enqueue_rollout(number) for number in range(2)])
        await store.update_rollout(made[0], status="cancelled")
        for timeout in (0.0, -1.0, 0.05, 0.5):
            began = time.monotonic()
            assert ids(await store.wait_for_rollouts(rollout_ids=made, timeout=timeout)) == made[:1]
            assert time.monotonic() - began >= timeout
        assert list(await store.wait_for_rollouts(["ro-x"], timeout=None)) == []
        assert list(await store.wait_for_rollouts([])) == []

    async def test_waiting_begins_anew_after_a_restart(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
        await store.start_attempt(attempted.rollout_id)
        assert list(await store.wait_for_rollouts([attempted.rollout_id], 0.05)) == []
        waiting = asyncio.ensure_future(store.wait_for_rollouts([attempted.rollout_id]))
        await asyncio.sleep(0.02)
        await store.update_attempt(attempted.rollout_id, "latest", status="failed")
        assert [one.status for one in await asyncio.wait_for(waiting, 5)] == ["failed"]

    async def test_a_wait_can_be_cancelled(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        waiting = asyncio.ensure_future(store.wait_for_rollouts([attempted.rollout_id]))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
        assert ids(await store.wait_for_rollouts([attempted.rollout_id])) == [attempted.rollout_id]

    async def test_facts_are_delivered_in_order_from_any_position(self, store: agl.LightningStore) -> None:
        attempted = await begin(store, worker_id="w")
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
        facts = await take_facts(store, 1, types=["rollout.completed"], since=-1)
        assert facts[0].rollout_id == attempted.rollout_id and facts[0].data["status"] == "succeeded"
        early = await take_facts(store, 5, since=-1)
        assert [fact.position for fact in early] == sorted(fact.position for fact in early)
        assert len({fact.id for fact in early}) == 5
        middle = early[2]
        rest = await take_facts(store, 1, since=middle.position)
        assert rest[0].position > middle.position
