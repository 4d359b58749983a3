"""The answers to hard questions, by their numbers, as far as they need a store and no broker: commands and positions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.core.errors import Expired, ForeignPosition, InvalidInput, LogClosed, Refused
from agentlightning.core.events import codec
from agentlightning.core.events.schema import AttemptClaimed, AttemptExpired, AttemptStarted, AttemptUpdated, Claim
from agentlightning.core.fold.apply import fold
from agentlightning.core.ids import uuid7_hex
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL, SPANS
from agentlightning.projections.replica.command_context import Call, serve
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.projections.store.store import EventLogStore

from .logs import DyingLog, ForgetfulLog, HeldLog, HoldingLog, copy_of_control
from .tools import attempt_of, begin, claim, control_values, ids, pass_time, settled, span, status_of, store_on

RETRY = agl.RolloutConfig(max_attempts=3, retry_condition=["failed", "timeout", "unresponsive"])


async def _again(store: EventLogStore, call: Call, act: Any) -> Any:
    """One try of a call, in a task of its own as each request of a client is."""

    async def tried() -> Any:
        serve(call)
        return await act(store)

    return await asyncio.ensure_future(tried())


async def test_01_a_retry_of_a_command_on_an_archived_rollout_is_the_same_command() -> None:
    log, settings = MemoryLog(), StoreSettings(archive_after=4)
    call = Call(uuid7_hex(), repeatable=True)
    with store_on(log, settings=settings) as store:
        attempted = await begin(store)
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
        for number in range(6):
            await store.enqueue_rollout(number)
        assert attempted.rollout_id not in store.engine.node.state.rollouts
        started = [await _again(store, call, lambda it: it.start_attempt(attempted.rollout_id)) for _ in range(3)]
        assert {one.attempt.attempt_id for one in started} == {started[0].attempt.attempt_id}
        assert len(await store.query_attempts(attempted.rollout_id)) == 2
        assert sum(isinstance(codec.decode(value).event, AttemptStarted) for value in control_values(log)) == 1
    log.close()


async def test_03_a_repeated_dequeue_that_was_refused_is_refused_again() -> None:
    log = MemoryLog()
    with store_on(log) as store:
        await store.enqueue_rollout("x")
        call = Call("0" * 32, (store.engine.node.state.position - 1, b"12345678"), repeatable=True)
        # As a node of another release may have written it: this one does not append what it can refuse itself.
        event = AttemptClaimed(rollout_id="ro-x", generation=0, sequence_id=1, claim=Claim(attempt_id="at-x"))
        with store.engine.node.lock:
            store.engine.node.propose(event, call.command_id, lambda _: None, call.basis)
        await settled(store.engine)
        for _ in range(2):
            with pytest.raises(Refused, match="foreign_history"):
                await _again(store, Call(call.command_id, repeatable=True), lambda it: it.dequeue_rollout())
        assert await claim(store)
    log.close()


@pytest.mark.parametrize("kind", ["update", "create"])
async def test_01_a_retry_at_another_node_is_never_told_refused(kind: str) -> None:
    """The first record is under way (its answer is held back) when the same command is tried elsewhere."""
    log = MemoryLog()
    holding = HoldingLog(log)
    with store_on(holding) as first, store_on(log, foreign_writers=True) as second:  # type: ignore[arg-type]
        rollout = await first.enqueue_rollout("x")
        await second.wait_position(first.position())

        async def tried(store: EventLogStore) -> agl.Rollout:
            if kind == "update":
                return await store.update_rollout(rollout.rollout_id, metadata={"by": "caller"})
            return await store.enqueue_rollout("y", metadata={"by": "caller"})  # twice would be refused: it exists

        call = Call(uuid7_hex(), repeatable=True)
        holding.holding = True
        serve(call)
        trying = asyncio.ensure_future(tried(first))
        await asyncio.to_thread(holding.written.acquire)
        again = await tried(second)
        holding.release()
        once = await trying
        assert once.rollout_id == again.rollout_id and once.metadata == again.metadata == {"by": "caller"}
        assert len(control_values(log)) in (3, 4)
        serve(Call(uuid7_hex()))
        assert (await second.query_rollouts()).total == (1 if kind == "update" else 2)
    log.close()


async def test_03_a_repeated_dequeue_walks_to_the_same_rollout() -> None:
    log = MemoryLog()
    with store_on(ForgetfulLog(log)) as store:
        await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in range(20)])
        for number in range(10):
            command_id = f"{number:032x}"
            told = {(await claim(store, command_id=command_id)).rollout_id for _ in range(4)}
            assert len(told) == 1
        assert (await store.query_rollouts(status_in=["preparing"])).total == 10
    log.close()


@pytest.mark.parametrize("unplaced", [False, True])
async def test_04_the_answer_is_what_the_fold_made_of_this_record(unplaced: bool) -> None:
    """Claim, expiry and second claim are in the log before the first claimer is answered: it gets attempt 1."""
    log = MemoryLog()
    holding = HoldingLog(log, unplaced)
    clock = ManualClock()
    with store_on(holding) as first, store_on(log, foreign_writers=True, clock=clock) as second:
        config = agl.RolloutConfig(timeout_seconds=1, max_attempts=2, retry_condition=["timeout"])
        rollout = await first.enqueue_rollout("x", config=config)
        holding.holding = True
        claiming = asyncio.ensure_future(claim(first, "slow"))
        await asyncio.to_thread(holding.written.acquire)
        for _ in range(200):
            if (await store_status(second, rollout.rollout_id)) == "preparing":
                break
            await asyncio.sleep(0.005)
        await pass_time(second.engine, clock, 4)
        other = await claim(second, "quick", wait_seconds=5)
        assert other.attempt.sequence_id == 2
        holding.release()
        mine = await claiming
        assert (mine.attempt.sequence_id, mine.attempt.worker_id) == (1, "slow")
        assert mine.attempt.status == "preparing"
    log.close()


async def store_status(store: EventLogStore, rollout_id: str) -> str | None:
    """The status as this node knows it; None before it knows the rollout."""
    rollout = await store.get_rollout_by_id(rollout_id)
    return None if rollout is None else rollout.status


@pytest.mark.parametrize("records", [0, 1, 2, 3])
async def test_05_a_split_batch_survives_a_kill_between_its_records(records: int) -> None:
    log = MemoryLog()
    call = Call(uuid7_hex(), repeatable=True)
    batch = [agl.EnqueueRolloutRequest(input=str(number) * 300_000) for number in range(8)]
    with store_on(log) as store:
        await store.enqueue_rollout("first")

    async def enqueue(store: EventLogStore) -> list[str]:
        serve(call)
        return ids(await store.enqueue_many_rollouts(batch))

    with store_on(DyingLog(log, records)) as store:  # type: ignore[arg-type]
        with pytest.raises(LogClosed):
            await asyncio.ensure_future(enqueue(store))
    with store_on(log) as store:
        made = await asyncio.ensure_future(enqueue(store))
        assert await asyncio.ensure_future(enqueue(store)) == made
        claimed = await store.dequeue_many_rollouts(limit=20)
        assert ids(claimed)[1:] == made and [one.input[0] for one in claimed[1:]] == list("01234567")
    log.close()


async def test_09_the_fingerprint_does_not_know_heartbeats_spans_or_the_cold_index() -> None:
    settings = StoreSettings(archive_after=2)
    with InMemoryLightningStore(settings=settings) as store:
        for number in range(8):
            attempted = await begin(store, worker_id="w")
            await store.update_worker("w", {"n": number})
            await store.add_span(span(attempted))
            await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
        attempted = await begin(store)
        await store.add_span(span(attempted))
        before = store.fingerprint()
        for _ in range(3):
            await store.update_worker("w", {"more": 1}, attempts=[(attempted.rollout_id, attempted.attempt.attempt_id)])
            await store.add_span(span(attempted))
            await store.dequeue_rollout("idle")
        assert store.fingerprint() == before
        with EventLogStore(copy_of_control(store.engine.log)) as other:
            assert other.fingerprint() == before
            await other.update_worker("somebody else")
            assert other.fingerprint() == before


async def test_10_finished_rollouts_leave_hot_state_by_position_and_come_back_when_needed(tmp_path: Path) -> None:
    settings = StoreSettings(archive_after=4)
    log = MemoryLog()
    with store_on(log, settings=settings, index_path=str(tmp_path / "index")) as store:
        done: list[agl.Rollout] = []
        for _ in range(10):
            attempted = await begin(store)
            await store.add_span(span(attempted))
            await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
            done += await store.wait_for_rollouts([attempted.rollout_id], timeout=0)
        assert len(store.engine.node.state.rollouts) < 5
        assert ids(await store.query_rollouts()) == ids(done)
        assert (await store.statistics()).get("total_attempts") == 10
        oldest = done[0].rollout_id
        assert await store.wait_for_rollouts([oldest]) == done[:1]
        assert await store.query_rollouts(rollout_id_in=[oldest], status_in=["succeeded"])
        late = await store.update_attempt(oldest, "latest", status="failed")
        assert late.status == "succeeded", "the first end wins for an archived rollout too"
        changed = await store.update_rollout(oldest, metadata={"seen": True})
        assert changed.metadata == {"seen": True} and changed.status == "succeeded"
        assert ids(await store.query_rollouts()) == ids(done), "each of them once"
        again = await store.start_attempt(done[1].rollout_id)
        assert again.attempt.sequence_id == 2
        assert store.report()["rollouts"] == {"preparing": 1, "succeeded": 9}
        printed, total = store.fingerprint(), (await store.statistics()).get("total_attempts")
    for index in (str(tmp_path / "index"), None):
        with store_on(log, settings=settings, index_path=index) as store:
            assert store.fingerprint() == printed
            assert store.report()["rollouts"] == {"preparing": 1, "succeeded": 9}
            assert (await store.statistics()).get("total_attempts") == total
    assert fold(control_values(log)).fingerprint.hex() == printed[1]
    log.close()


async def test_12_a_position_of_another_log_is_an_error_at_once() -> None:
    with InMemoryLightningStore() as old, InMemoryLightningStore() as new:
        await old.enqueue_rollout(1)
        token = old.position()
        await asyncio.wait_for(old.wait_position(token), 1)
        with pytest.raises(ForeignPosition):
            await asyncio.wait_for(new.wait_position(token), 1)
        for wrong in ("", "x", "a:b", "a:b:-1", "a:b:c"):
            with pytest.raises(InvalidInput):
                await new.wait_position(wrong)
        log_id, printed, position = token.split(":")
        await old.wait_position(f"{log_id}::{position}")  # as a page of the past gives it
        for foreign in (f"{log_id}:{printed}:{int(position) + 1}", f"{log_id}:{'0' * 16}:{position}"):
            with pytest.raises(ForeignPosition):
                await asyncio.wait_for(old.wait_position(foreign), 1)


async def test_12_a_position_that_another_node_wrote_is_waited_for() -> None:
    inner = MemoryLog()
    held = HeldLog(inner, CONTROL)
    with store_on(held, foreign_writers=True) as behind, store_on(inner, foreign_writers=True) as ahead:
        held.held = True
        await ahead.enqueue_rollout(1)
        log_id, _, position = ahead.position().split(":")
        waiting = asyncio.ensure_future(behind.wait_position(ahead.position()))
        other = asyncio.ensure_future(behind.wait_position(f"{log_id}:{'0' * 16}:{position}"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        held.release()
        await asyncio.wait_for(waiting, 1)
        with pytest.raises(ForeignPosition, match="another history"):
            await asyncio.wait_for(other, 1)
        with pytest.raises(ForeignPosition, match="ahead of the log"):
            await asyncio.wait_for(behind.wait_position(f"{log_id}::{int(position) + 1}"), 5)
    with pytest.raises(LogClosed):
        await asyncio.wait_for(behind.wait_position(f"{log_id}::{int(position) + 1}"), 3)
    inner.close()


async def test_13_to_15_during_a_back_off_idle_claimers_find_nothing() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        config = agl.RolloutConfig(max_attempts=2, retry_condition=["failed"], retry_backoff_seconds=30)
        attempted = await begin(store, config)
        idle = [asyncio.ensure_future(store.dequeue_rollout(wait_seconds=60)) for _ in range(5)]
        await store.update_attempt(attempted.rollout_id, "latest", status="failed")
        assert await status_of(store, attempted.rollout_id) == "requeuing"
        await pass_time(store.engine, clock, 28)
        await asyncio.sleep(0.02)
        assert not any(one.done() for one in idle) and await store.dequeue_rollout() is None
        await pass_time(store.engine, clock, 4)
        done, rest = await asyncio.wait(idle, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        for one in rest:
            one.cancel()


async def test_14_an_expiry_that_did_not_see_a_revival_is_refused() -> None:
    from agentlightning.core.fold import commands as decide

    with InMemoryLightningStore() as store:
        attempted = await begin(store, RETRY)
        rollout = store.engine.node.state.rollouts[attempted.rollout_id]
        event = decide.expire(
            rollout, rollout.attempts[0], "worker_lost", beat_us=None, watermark=None, lost_retries=3
        )
        await store.update_attempt(attempted.rollout_id, "latest", status="unresponsive")
        await store.add_span(span(attempted))
        outcome = await store.engine.settle(event)
        assert not outcome.accepted
        assert await status_of(store, attempted.rollout_id) == "running"


async def test_16_resources_that_land_between_validation_and_append_are_bound() -> None:
    log = MemoryLog()
    holding = HoldingLog(log)
    with store_on(holding) as store:
        await store.add_resources({"p": "old"})
        holding.holding = True
        publishing = asyncio.ensure_future(store.add_resources({"p": "new"}))
        await asyncio.to_thread(holding.written.acquire)
        enqueuing = asyncio.ensure_future(store.enqueue_rollout("x"))
        await asyncio.sleep(0.01)
        holding.release()
        assert (await enqueuing).resources_id == (await publishing).resources_id
    log.close()


async def test_17_nothing_ends_before_it_starts_however_clocks_differ() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        rollout = await store.enqueue_rollout("x")
        clock.jump(-3600)
        attempted = await claim(store)
        clock.jump(-3600)
        attempt = await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        (done,) = await store.wait_for_rollouts([rollout.rollout_id])
        assert attempted.attempt.start_time >= rollout.start_time
        assert attempt.end_time is not None and attempt.end_time >= attempt.start_time
        assert done.end_time is not None and done.end_time >= attempt.start_time
        made = await store.update_resources("r", {"p": "x"})
        clock.jump(-3600)
        assert (await store.update_resources("r", {"p": "y"})).update_time >= made.create_time


async def test_02_a_command_that_is_older_than_the_table_is_refused_as_expired() -> None:
    with InMemoryLightningStore(settings=StoreSettings(window=10)) as store:
        rollout = await store.enqueue_rollout("x")
        with store.engine.node.lock:
            basis = (store.engine.node.state.position - 1, store.engine.node.state.fingerprint)
        for number in range(20):
            await store.update_rollout(rollout.rollout_id, metadata={"n": number})

        async def late() -> None:
            serve(Call(uuid7_hex(), basis, repeatable=True))
            await store.update_rollout(rollout.rollout_id, metadata={"late": True})

        with pytest.raises(Expired):
            await asyncio.ensure_future(late())
        kept = await store.get_rollout_by_id(rollout.rollout_id)
        assert kept is not None and kept.metadata == {"n": 19}


async def test_22_every_end_carries_a_watermark_behind_all_acknowledged_spans() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        marks: list[int] = []
        for end in ("update", "expiry"):
            attempted = await begin(store, agl.RolloutConfig(timeout_seconds=2))
            await asyncio.gather(*(store.add_span(span(attempted)) for _ in range(5)))
            if end == "update":
                await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
            else:
                await pass_time(store.engine, clock, 4)
                assert (await attempt_of(store, attempted.rollout_id)).status == "timeout"
            marks.append(store.engine.log.ends(SPANS, 0)[1])
        events = [codec.decode(value).event for value in control_values(store.engine.log)]
        told = [one.watermark for one in events if isinstance(one, (AttemptUpdated, AttemptExpired))]
        assert told == marks == [5, 10]


async def test_24_two_clients_alternate_and_a_restart_come_to_one_order() -> None:
    log = MemoryLog()
    with store_on(log) as store:
        attempted = await begin(store)
    pair = (attempted.rollout_id, attempted.attempt.attempt_id)
    order: list[int] = []
    sent: list[str] = []
    for life in range(4):
        with store_on(log) as store:
            for number in range(6):
                if number % 3 == life % 3:
                    order.append(await asyncio.to_thread(asyncio.run, store.get_next_span_sequence_id(*pair)))
                stored = await asyncio.to_thread(asyncio.run, store.add_span(span(attempted)))
                assert stored is not None
                order.append(stored.sequence_id)
                sent.append(stored.span_id)
    assert order == list(range(1, len(order) + 1))
    with store_on(log) as store:
        assert [one.span_id for one in await store.query_spans(attempted.rollout_id)] == sent
    log.close()


async def test_26_whoever_waits_at_another_node_hears_of_new_work() -> None:
    log = MemoryLog()
    with store_on(log, foreign_writers=True) as first, store_on(log, foreign_writers=True) as second:
        waiting = asyncio.ensure_future(claim(second, wait_seconds=10))
        await asyncio.sleep(0.02)
        made = await first.enqueue_rollout("x")
        assert (await asyncio.wait_for(waiting, 5)).rollout_id == made.rollout_id
        for number in range(30):
            await (first if number % 2 else second).enqueue_rollout(number)
        claimers = [first, second] * 15
        told = await asyncio.gather(*(claim(one, wait_seconds=5) for one in claimers))
        assert len(set(ids(told))) == 30, "two nodes claim from one queue, nothing twice"
        await settled(first.engine)
        await second.wait_position(first.position())
        await first.wait_position(second.position())
        assert first.fingerprint() == second.fingerprint()
    log.close()
