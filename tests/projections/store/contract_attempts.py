"""What every store promises about the ends of attempts and rollouts: the state machine, retries, timeouts, silence."""

from __future__ import annotations

import pytest

import agentlightning as agl

from .tools import PassTime, attempt_of, begin, claim, ids, span, status_of

RETRY = agl.RolloutConfig(max_attempts=3, retry_condition=["failed", "timeout", "unresponsive"])


class AttemptContract:
    """Part of `StoreContract`."""

    @pytest.mark.parametrize("status", ["preparing", "running", "succeeded"])
    async def test_the_rollout_follows_its_latest_attempt(self, store: agl.LightningStore, status: str) -> None:
        attempted = await begin(store)
        attempt = await store.update_attempt(attempted.rollout_id, "latest", status=status)  # type: ignore[arg-type]
        assert attempt.status == status
        assert await status_of(store, attempted.rollout_id) == status
        assert (attempt.end_time is not None) == (status == "succeeded")

    @pytest.mark.parametrize("status", ["failed", "timeout", "unresponsive"])
    async def test_a_retryable_end_requeues_up_to_max_attempts(self, store: agl.LightningStore, status: str) -> None:
        rollout = await store.enqueue_rollout("x", config=RETRY)
        other = None
        for number in (1, 2, 3):
            attempted = await claim(store)
            assert (attempted.rollout_id, attempted.attempt.sequence_id) == (rollout.rollout_id, number)
            if number == 1:
                other = await store.enqueue_rollout("queued before the retry")
            await store.update_attempt(rollout.rollout_id, attempted.attempt.attempt_id, status=status)  # type: ignore[arg-type]
            if number < 3:
                assert await status_of(store, rollout.rollout_id) == "requeuing"
            if other is not None:
                assert (await claim(store)).rollout_id == other.rollout_id, "a retry queues at the tail"
                other = None
        assert await status_of(store, rollout.rollout_id) == "failed"
        assert await store.dequeue_rollout() is None
        attempts = await store.query_attempts(rollout.rollout_id)
        assert [one.sequence_id for one in attempts] == [1, 2, 3]
        assert all((one.end_time is not None) == (status == "failed") for one in attempts)

    @pytest.mark.parametrize("status", ["failed", "timeout", "unresponsive"])
    async def test_an_end_that_is_no_retry_condition_fails_the_rollout(
        self, store: agl.LightningStore, status: str
    ) -> None:
        attempted = await begin(store, agl.RolloutConfig(max_attempts=3))
        await store.update_attempt(attempted.rollout_id, "latest", status=status)  # type: ignore[arg-type]
        rollout = await store.get_rollout_by_id(attempted.rollout_id)
        assert rollout is not None and rollout.status == "failed" and rollout.end_time is not None

    async def test_a_cancelled_rollout_is_not_brought_back(self, store: agl.LightningStore) -> None:
        for report in ("running", "succeeded", "failed"):
            attempted = await begin(store, RETRY)
            await store.update_rollout(attempted.rollout_id, status="cancelled")
            await store.add_span(span(attempted))
            await store.update_attempt(attempted.rollout_id, "latest", status=report)  # type: ignore[arg-type]
            assert await status_of(store, attempted.rollout_id) == "cancelled"
            assert (await attempt_of(store, attempted.rollout_id)).status == report
            assert await store.dequeue_rollout() is None

    async def test_the_first_end_of_an_attempt_wins(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        first = await store.update_attempt(attempted.rollout_id, "latest", status="timeout")
        late = await store.update_attempt(attempted.rollout_id, attempted.attempt.attempt_id, status="succeeded")
        assert first.status == late.status == "timeout"
        rollout = await store.get_rollout_by_id(attempted.rollout_id)
        assert rollout is not None and rollout.status == "failed"

    async def test_an_update_of_other_fields_leaves_the_rollout_alone(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        await store.update_rollout(attempted.rollout_id, status="succeeded")
        attempt = await store.update_attempt(attempted.rollout_id, "latest", metadata={"k": 1})
        assert attempt.metadata == {"k": 1}
        assert await status_of(store, attempted.rollout_id) == "succeeded"

    async def test_older_attempts_never_touch_the_rollout(self, store: agl.LightningStore) -> None:
        attempted = await begin(store, RETRY)
        await store.update_attempt(attempted.rollout_id, "latest", status="unresponsive")
        second = await claim(store)
        await store.add_span(span(attempted))
        assert await status_of(store, attempted.rollout_id) == "preparing"
        await store.update_attempt(attempted.rollout_id, attempted.attempt.attempt_id, status="succeeded")
        assert await status_of(store, attempted.rollout_id) == "preparing"
        await store.update_attempt(attempted.rollout_id, second.attempt.attempt_id, status="failed")
        assert await status_of(store, attempted.rollout_id) == "requeuing"
        assert (await store.query_spans(attempted.rollout_id)).total == 1

    async def test_a_span_revives_an_unresponsive_attempt_before_the_retry(self, store: agl.LightningStore) -> None:
        attempted = await begin(store, RETRY)
        await store.update_attempt(attempted.rollout_id, "latest", status="unresponsive")
        assert await status_of(store, attempted.rollout_id) == "requeuing"
        await store.add_span(span(attempted))
        assert await status_of(store, attempted.rollout_id) == "running"
        assert (await attempt_of(store, attempted.rollout_id)).status == "running"
        assert await store.dequeue_rollout() is None

    async def test_a_span_does_not_revive_what_is_over(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        await store.update_attempt(attempted.rollout_id, "latest", status="unresponsive")
        await store.add_span(span(attempted))
        assert await status_of(store, attempted.rollout_id) == "failed"
        timed = await begin(store, RETRY)
        await store.update_attempt(timed.rollout_id, "latest", status="timeout")
        await store.add_span(span(timed))
        assert await status_of(store, timed.rollout_id) == "requeuing"
        assert (await attempt_of(store, timed.rollout_id)).status == "timeout"

    async def test_updates_name_what_is_missing(self, store: agl.LightningStore) -> None:
        with pytest.raises(ValueError, match="Rollout ro-x not found"):
            await store.update_attempt("ro-x", "latest", status="failed")
        rollout = await store.enqueue_rollout(1)
        with pytest.raises(ValueError, match="No attempts found for rollout"):
            await store.update_attempt(rollout.rollout_id, "latest", status="failed")
        await claim(store)
        with pytest.raises(ValueError, match="Attempt at-x not found for rollout"):
            await store.update_attempt(rollout.rollout_id, "at-x", status="failed")
        with pytest.raises(ValueError, match="ro-x"):
            await store.update_rollout("ro-x", status="failed")

    async def test_update_rollout_replaces_the_given_fields(self, store: agl.LightningStore) -> None:
        made = await store.enqueue_rollout({"a": 1}, mode="train", metadata={"x": 1, "y": 2})
        changed = await store.update_rollout(made.rollout_id, metadata={"x": 3})
        assert (changed.input, changed.mode, changed.metadata) == ({"a": 1}, "train", {"x": 3})
        changed = await store.update_rollout(made.rollout_id, input=None, mode=None, metadata=None, resources_id="rs-1")
        assert (changed.input, changed.mode, changed.metadata, changed.resources_id) == (None, None, None, "rs-1")
        assert type(changed) is agl.Rollout and changed.status == "queuing"
        changed = await store.update_rollout(made.rollout_id, config=agl.RolloutConfig(timeout_seconds=2.5))
        assert changed.config.timeout_seconds == 2.5

    async def test_a_terminal_status_ends_and_a_queuing_one_reopens(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        for status in ("failed", "succeeded", "cancelled"):
            done = await store.update_rollout(attempted.rollout_id, status=status)  # type: ignore[arg-type]
            assert done.status == status and done.end_time is not None
        for number, status in ((2, "queuing"), (3, "requeuing")):
            back = await store.update_rollout(attempted.rollout_id, status=status)  # type: ignore[arg-type]
            assert back.status == status and back.end_time is None
            again = await store.update_rollout(attempted.rollout_id, status=status)  # type: ignore[arg-type]
            assert again.status == status
            assert (await claim(store)).attempt.sequence_id == number
            assert await store.dequeue_rollout() is None, "it is in the queue once"
            await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")

    async def test_a_reset_while_an_attempt_runs_makes_its_success_late(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        await store.update_rollout(attempted.rollout_id, status="queuing", input="new")
        await store.update_attempt(attempted.rollout_id, attempted.attempt.attempt_id, status="succeeded")
        assert await status_of(store, attempted.rollout_id) == "queuing"
        second = await claim(store)
        assert second.input == "new"
        await store.update_attempt(second.rollout_id, second.attempt.attempt_id, status="failed")
        assert await status_of(store, attempted.rollout_id) == "failed"

    async def test_a_heartbeat_time_is_taken_as_told(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        attempt = await store.update_attempt(attempted.rollout_id, "latest", last_heartbeat_time=123.5)
        assert attempt.last_heartbeat_time == 123.5
        assert (await attempt_of(store, attempted.rollout_id)).last_heartbeat_time == 123.5

    async def test_too_long_is_a_timeout(self, store: agl.LightningStore, passing: PassTime) -> None:
        attempted = await begin(store, agl.RolloutConfig(timeout_seconds=30))
        await passing(20)
        await store.add_span(span(attempted))
        await passing(9)
        assert await status_of(store, attempted.rollout_id) == "running"
        await passing(3)
        assert await status_of(store, attempted.rollout_id) == "failed"
        attempt = await attempt_of(store, attempted.rollout_id)
        assert (attempt.status, attempt.end_time) == ("timeout", None)

    async def test_silence_is_unresponsive_and_a_span_is_a_sign_of_life(
        self, store: agl.LightningStore, passing: PassTime
    ) -> None:
        attempted = await begin(store, agl.RolloutConfig(unresponsive_seconds=10))
        for _ in range(4):
            await passing(7)
            await store.add_span(span(attempted))
        assert await status_of(store, attempted.rollout_id) == "running"
        await passing(12)
        assert (await attempt_of(store, attempted.rollout_id)).status == "unresponsive"
        assert await status_of(store, attempted.rollout_id) == "failed"

    async def test_a_worker_heartbeat_that_names_the_attempt_keeps_it_alive(
        self, store: agl.LightningStore, passing: PassTime
    ) -> None:
        attempted = await begin(store, agl.RolloutConfig(unresponsive_seconds=10))
        for _ in range(4):
            await passing(7)
            await store.update_worker("w", attempts=[(attempted.rollout_id, attempted.attempt.attempt_id)])
        assert await status_of(store, attempted.rollout_id) in ("preparing", "running")
        await passing(7)
        await store.update_worker("w")
        await passing(5)
        assert await status_of(store, attempted.rollout_id) == "failed"

    async def test_expired_attempts_are_retried(self, store: agl.LightningStore, passing: PassTime) -> None:
        config = agl.RolloutConfig(timeout_seconds=5, max_attempts=2, retry_condition=["timeout"])
        attempted = await begin(store, config, "w")
        await passing(7)
        second = await claim(store)
        assert (second.rollout_id, second.attempt.sequence_id) == (attempted.rollout_id, 2)
        worker = await store.get_worker_by_id("w")
        assert worker is not None and worker.status == "unknown" and worker.current_rollout_id is None
        await passing(7)
        assert await status_of(store, attempted.rollout_id) == "failed"
        assert [one.status for one in await store.query_attempts(attempted.rollout_id)] == ["timeout", "timeout"]

    async def test_a_back_off_keeps_the_rollout_from_everybody(
        self, store: agl.LightningStore, passing: PassTime
    ) -> None:
        config = agl.RolloutConfig(max_attempts=2, retry_condition=["failed"], retry_backoff_seconds=20)
        attempted = await begin(store, config)
        await store.update_attempt(attempted.rollout_id, "latest", status="failed")
        await passing(18)
        assert await status_of(store, attempted.rollout_id) == "requeuing"
        assert await store.dequeue_rollout() is None
        await passing(4)
        assert ids([await claim(store)]) == [attempted.rollout_id]

    async def test_an_attempt_without_limits_is_left_alone(self, store: agl.LightningStore, passing: PassTime) -> None:
        attempted = await begin(store, worker_id="w")
        await passing(300)
        assert await status_of(store, attempted.rollout_id) == "preparing"

    async def test_a_timeout_starts_with_its_attempt(self, store: agl.LightningStore, passing: PassTime) -> None:
        """Also where another attempt, which has no limit, was open for long before."""
        await begin(store)
        await passing(300)
        attempted = await begin(store, agl.RolloutConfig(timeout_seconds=60))
        await passing(55)
        assert await status_of(store, attempted.rollout_id) == "preparing"
        await passing(8)
        assert await status_of(store, attempted.rollout_id) == "failed"
