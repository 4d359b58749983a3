"""Spans that meet on their way, or fail to get there: which answer each caller gets, and what is in the log then."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.core.errors import LogCorrupt, LogFull
from agentlightning.core.events.payload import INLINE_LIMIT_BYTES
from agentlightning.core.ids import uuid7_hex
from agentlightning.core.log.interface import Log, NewRecord
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.sqlite import SqliteLog
from agentlightning.core.log.topics import BLOBS, SPANS
from agentlightning.core.spans.rewards import find_final_reward
from agentlightning.projections.replica import validation
from agentlightning.projections.replica.command_context import Call, serve
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.spans import span_log
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.projections.store.store import EventLogStore
from agentlightning.projections.store.views import INCOMPLETE

from ..store.logs import LosingLog
from ..store.tools import Unclosed, begin, claim, control_values, pass_time, span, store_on, take_facts


class SlowSpans(Unclosed):
    """Appends to the spans topic wait, unwritten, until they are let through or refused."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.holding = False
        self.asked = threading.Semaphore(0)
        self._held: list[tuple[Callable[[], None], Any]] = []

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Any) -> None:
        if self.holding and topic == SPANS:
            self._held.append((lambda: self._log.append(topic, partition, records, done), done))
            self.asked.release()
        else:
            self._log.append(topic, partition, records, done)

    def release(self, fail_first: bool = False) -> None:
        """Write what was held; the first append finds no room where `fail_first`."""
        self.holding = False
        held, self._held = self._held, []
        for number, (write, done) in enumerate(held):
            if fail_first and number == 0:
                threading.Thread(target=done, args=(LogFull("no room"),)).start()
            else:
                write()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_duplicate_is_answered_when_the_first_copy_is_and_takes_its_place_if_that_failed(fails: bool) -> None:
    log = SlowSpans(MemoryLog())
    with store_on(log) as store:
        attempted = await begin(store)
        sent = span(attempted, span_id="1" * 16)
        log.holding = True
        first = asyncio.ensure_future(store.add_span(sent))
        await asyncio.to_thread(log.asked.acquire)
        copies = [asyncio.ensure_future(store.add_span(sent)), asyncio.ensure_future(store.add_many_spans([sent, sent]))]
        await asyncio.sleep(0.02)
        assert not any(one.done() for one in copies), "nothing is durable yet"
        log.release(fails)
        answers = await asyncio.wait_for(asyncio.gather(first, *copies, return_exceptions=True), 5)
        if fails:
            assert isinstance(answers[0], LogFull)
            stored: list[Any] = [one for one in (answers[1], *answers[2]) if one is not None]  # type: ignore[misc]
            assert [one.sequence_id for one in stored] == [1], "one of the others got it into the log"
        else:
            assert answers == [sent.model_copy(update={"sequence_id": 1}), None, []]
        assert (await store.query_spans(attempted.rollout_id)).total == 1
        assert (await store.statistics()).get("total_spans") == 1


@pytest.mark.parametrize("shared", [False, True])
async def test_a_repeated_call_gets_the_answer_that_was_lost_and_another_call_does_not(shared: bool) -> None:
    log = MemoryLog()
    call, other = Call(uuid7_hex(), repeatable=True), Call(uuid7_hex(), repeatable=True)
    with store_on(log, foreign_writers=shared) as store:
        attempted = await begin(store)
        batch = [span(attempted), span(attempted), span(attempted, sequence_id=9)]
        await store.add_span(batch[1])

    async def add(store: EventLogStore, call: Call) -> list[tuple[str, int]]:
        serve(call)
        return [(one.span_id, one.sequence_id) for one in await store.add_many_spans(batch)]

    for _ in range(2):  # the second time after a restart
        with store_on(log, foreign_writers=shared) as store:
            for _ in range(2):
                answers = await asyncio.ensure_future(add(store, call))
                assert answers == [(batch[0].span_id, 2), (batch[2].span_id, 9)]
            assert await asyncio.ensure_future(add(store, other)) == []
            assert (await store.query_spans(attempted.rollout_id)).total == 3
    log.close()


@pytest.mark.parametrize("shared", [False, True])
async def test_a_repeated_reservation_gets_the_number_of_its_first_try(shared: bool) -> None:
    log = MemoryLog()
    call = Call(uuid7_hex(), repeatable=True)

    async def reserve(store: EventLogStore, call: Call) -> list[int]:
        serve(call)
        pair = (attempted.rollout_id, attempted.attempt.attempt_id)
        return list(await store.get_many_span_sequence_ids([pair, pair]))

    with store_on(log, foreign_writers=shared) as store:
        attempted = await begin(store)
        assert await asyncio.ensure_future(reserve(store, call)) == [1, 2]
        stored = await store.add_span(span(attempted))
        assert stored is not None and stored.sequence_id == 3
        assert await asyncio.ensure_future(reserve(store, call)) == [1, 2]
    with store_on(log, foreign_writers=shared) as store:
        assert await asyncio.ensure_future(reserve(store, call)) == [1, 2]
        other = await asyncio.ensure_future(reserve(store, Call(uuid7_hex(), repeatable=True)))
        assert min(other) > 3 and len(set(other)) == 2, "a number was given twice"
        late = await store.add_span(span(attempted))
        assert late is not None and late.sequence_id > max(other)
        assert [one.sequence_id for one in await store.query_spans(attempted.rollout_id)] == [3, late.sequence_id]
    log.close()


async def test_numbers_are_reserved_in_blocks_and_none_is_given_twice_after_a_crash() -> None:
    log = MemoryLog()
    given: list[int] = []
    with store_on(log) as store:
        attempted = await begin(store)
        pair = (attempted.rollout_id, attempted.attempt.attempt_id)
    for _ in range(3):
        with store_on(log) as store:
            before = log.ends(SPANS, 0)[1]
            given += [await store.get_next_span_sequence_id(*pair) for _ in range(span_log.BLOCK_NUMBERS)]
            assert log.ends(SPANS, 0)[1] == before + 1, "one record for a block"
            assert given[-span_log.BLOCK_NUMBERS :] == list(range(given[-span_log.BLOCK_NUMBERS], given[-1] + 1))
            given.append(await store.get_next_span_sequence_id(*pair))
            store.engine.spans.close = lambda: None  # as after a crash: the next life does not know what is left of a block
    assert given == sorted(set(given)), "a number was given twice, or an older one later"
    log.close()


async def test_what_is_left_of_a_block_comes_back_when_the_store_is_closed_or_the_counter_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = MemoryLog()
    with store_on(log) as store:
        attempted, other = await begin(store), await begin(store)
        pair = (attempted.rollout_id, attempted.attempt.attempt_id)
    monkeypatch.setattr(span_log, "HOT_COUNTERS", 1)
    given: list[int] = []
    for _ in range(2):
        with store_on(log) as store:
            for _ in range(3):
                given.append(await store.get_next_span_sequence_id(*pair))
                stored = await store.add_span(span(attempted))
                assert stored is not None
                given.append(stored.sequence_id)
                await store.add_span(span(other))
                assert list(store.engine.spans._counters) == [other.rollout_id]
            if given[-1] == 12:
                assert await store.get_next_span_sequence_id(*pair) == 13
                await store.update_attempt(*pair, status="succeeded")
                end = log.ends(SPANS, 0)[1]
                await store.add_span(span(other))
                assert log.ends(SPANS, 0)[1] == end + 1, "what is left of a finished rollout is not written"
    assert given == list(range(1, 13))
    log.close()


async def test_a_span_without_a_number_gets_the_next_one_of_a_block_and_keeps_it() -> None:
    log = MemoryLog()
    with store_on(log) as store:
        attempted = await begin(store)
        pair = (attempted.rollout_id, attempted.attempt.attempt_id)
        assert await store.get_next_span_sequence_id(*pair) == 1
        sent = [await store.add_span(span(attempted, sequence_id=number)) for number in (0, 1, 7, 0, 3)]
        assert [one and one.sequence_id for one in sent] == [2, 1, 7, 8, 3]
        assert await store.add_span(span(attempted, span_id=sent[0].span_id, sequence_id=20)) is None  # type: ignore[union-attr]
        assert await store.get_next_span_sequence_id(*pair) == 9
        last = await store.get_many_span_sequence_ids([pair] * 40)
        assert list(last) == list(range(10, 50)), "more than the block has left"
    with store_on(log) as store:
        assert [one.sequence_id for one in await store.query_spans(attempted.rollout_id)] == [1, 2, 3, 7, 8]
        assert await store.get_next_span_sequence_id(*pair) > last[-1]
    log.close()


async def test_a_sign_of_life_waits_for_no_commit_of_its_span() -> None:
    kept = MemoryLog()
    log = SlowSpans(kept)
    call = Call(uuid7_hex(), repeatable=True)
    with store_on(log) as store:
        attempted = await begin(store)
        before = len(control_values(kept))
        log.holding = True
        serve(call)
        adding = asyncio.ensure_future(store.add_span(span(attempted)))
        await asyncio.to_thread(log.asked.acquire)
        for _ in range(500):
            if len(control_values(kept)) > before:
                break
            await asyncio.sleep(0.01)
        assert len(control_values(kept)) == before + 1 and not adding.done()
        log.release()
        assert await adding is not None
        (rollout,) = await store.query_rollouts(rollout_id_in=[attempted.rollout_id])
        assert rollout.status == "running"


async def test_a_repeated_span_is_the_sign_of_life_that_its_first_try_did_not_get_to() -> None:
    log = MemoryLog()
    with store_on(log) as store:
        attempted = await begin(store)
        sent = span(attempted)
        call = Call(uuid7_hex(), repeatable=True)
        ids = span_log.record_ids(call, 1)
        serve(call)
        await store.engine.spans.add([validation.span(sent)], lambda _: None)  # the process ended here
        assert ids == [span_log.id_of(record) for record in log.read(SPANS, 0, 0)]
        assert (await store.get_latest_attempt(attempted.rollout_id)).status == "preparing"  # type: ignore[union-attr]
        assert await store.add_span(sent) is not None
        assert (await store.get_latest_attempt(attempted.rollout_id)).status == "running"  # type: ignore[union-attr]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_number_of_a_block_is_given_when_the_log_has_the_block(fails: bool) -> None:
    log = SlowSpans(MemoryLog())
    with store_on(log) as store:
        attempted = await begin(store)
        pair = (attempted.rollout_id, attempted.attempt.attempt_id)
        log.holding = True
        asking = [asyncio.ensure_future(store.get_next_span_sequence_id(*pair)) for _ in range(3)]
        await asyncio.to_thread(log.asked.acquire)
        adding = asyncio.ensure_future(store.add_span(span(attempted)))
        await asyncio.to_thread(log.asked.acquire)
        assert not any(one.done() for one in (*asking, adding)), "nothing is durable yet"
        log.release(fails)
        answers = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 5)
        stored = await adding
        assert stored is not None and stored.sequence_id == 4
        if fails:
            assert all(isinstance(one, LogFull) for one in answers)
        else:
            assert answers == [1, 2, 3]
        assert await store.get_next_span_sequence_id(*pair) == 5, "4 was given to the span"
        assert [one.sequence_id for one in await store.query_spans(attempted.rollout_id)] == [4]


async def test_spans_go_on_under_a_node_whose_topic_of_spans_was_made_anew() -> None:
    log = LosingLog(MemoryLog())
    with store_on(log, foreign_writers=True) as store:
        attempted = await begin(store)
        sent = [span(attempted) for _ in range(5)]
        await store.add_many_spans([*sent, sent[0]])
        assert (await store.statistics()).get("total_spans") == 5
        log.make_anew()
        for number in (1, 2):
            stored = await store.add_span(span(attempted))
            assert stored is not None and stored.sequence_id == number
        assert log.ends(SPANS, 0) == (0, 2), "a try left a copy behind"
        assert (await store.statistics()).get("total_spans") == 2
        assert (await store.query_spans(attempted.rollout_id)).total == 2


@pytest.mark.parametrize("archived", [False, True])
async def test_a_span_long_after_the_outcome_is_a_sign_of_life_in_the_control_log(archived: bool) -> None:
    clock, log = ManualClock(), MemoryLog()
    settings = StoreSettings(archive_after=2)
    with store_on(log, clock=clock, foreign_writers=True, settings=settings) as store:
        attempted = await begin(store)
        rollout_id, attempt_id = attempted.rollout_id, attempted.attempt.attempt_id
        await store.add_span(span(attempted))
        await store.update_attempt(rollout_id, attempt_id, status="succeeded")
        ended_us = store.engine._where(rollout_id).until_us
        events = len(control_values(log))
        await store.add_span(span(attempted))
        assert len(control_values(log)) == events, "a span at once after the end is no news"
        if archived:
            for number in range(3):
                await store.enqueue_rollout(number)
            assert rollout_id not in store.engine.node.state.rollouts
        clock.advance(3600)
        await store.add_span(span(attempted))
        known = store.engine._where(rollout_id)
        assert known.until_us == ended_us + 3_600_000_000
        assert (await store.query_spans(rollout_id)).total == 3
        assert (await store.get_rollout_by_id(rollout_id)).status == "succeeded"


async def test_a_counter_whose_spans_are_under_way_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_log, "HOT_COUNTERS", 1)
    log = SlowSpans(MemoryLog())
    with store_on(log) as store:
        one, other = await begin(store), await begin(store)
        log.holding = True
        adding = [asyncio.ensure_future(store.add_span(span(one)))]
        await asyncio.to_thread(log.asked.acquire)
        for attempted in (other, one):
            adding.append(asyncio.ensure_future(store.add_span(span(attempted))))
            await asyncio.to_thread(log.asked.acquire)
        log.release()
        assert [(await each).sequence_id for each in adding] == [1, 1, 2]  # type: ignore[union-attr]
        assert [each.sequence_id for each in await store.query_spans(one.rollout_id)] == [1, 2]


class BlobsLost(Unclosed):
    """A log whose blobs are gone, once `lost` names their keys."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.lost: set[str] = set()

    def read_key(self, topic: str, key: str, **options: Any) -> Any:
        return [] if topic == BLOBS and key in self.lost else self._log.read_key(topic, key, **options)


@pytest.mark.parametrize("shared", [False, True])
async def test_one_lost_payload_costs_its_own_row(shared: bool) -> None:
    log = BlobsLost(MemoryLog())
    large = "x" * (INLINE_LIMIT_BYTES + 1)
    with store_on(log, foreign_writers=shared) as store:
        attempted = await begin(store)
        await store.enqueue_rollout(large)
        await store.enqueue_rollout("small", metadata={"m": large + "y"})
        await store.add_span(span(attempted, attributes={"a": large}))
        await store.add_span(span(attempted, attributes={"a": 1}))
        await store.update_attempt(attempted.rollout_id, attempted.attempt.attempt_id, metadata={"n": large})
        await store.update_resources("rs-1", {"p": agl.PromptTemplate(template=large, engine="f-string")})
        await store.update_resources("rs-2", {"p": agl.PromptTemplate(template="small", engine="f-string")})
        log.lost = {record.key for record in log.read(BLOBS, 0, 0)}
        assert len(log.lost) == 5
        rollouts = await store.query_rollouts()
        assert [one.input for one in rollouts] == ["task", None, "small"] and rollouts.total == 3
        assert [INCOMPLETE in one.metadata for one in rollouts] == [False, True, True]
        assert "is missing from the log" in rollouts[1].metadata[INCOMPLETE]
        spans = await store.query_spans(attempted.rollout_id)
        assert [one.attributes for one in spans] == [{"a": 1}] and spans[0].sequence_id == 2
        attempts = await store.query_attempts(attempted.rollout_id)
        assert INCOMPLETE in attempts[0].metadata
        resources = await store.query_resources()
        assert [sorted(one.resources) for one in resources] == [[], ["p"]]
        for page in (rollouts, spans, attempts, resources):
            assert getattr(page, "incomplete", False)
        other = await store.enqueue_rollout("whole")
        assert not getattr(await store.query_rollouts(rollout_id_in=[other.rollout_id]), "incomplete", False)
        with pytest.raises(LogCorrupt, match="is missing from the log"):
            await store.get_rollout_by_id(rollouts[1].rollout_id)
    log.close()


@pytest.mark.parametrize("shared", [False, True])
async def test_a_rollout_whose_input_is_lost_fails_and_stops_no_runner(shared: bool) -> None:
    log = BlobsLost(MemoryLog())
    with store_on(log, foreign_writers=shared) as store:
        lost = await store.enqueue_rollout("x" * (INLINE_LIMIT_BYTES + 1))
        whole = await store.enqueue_rollout("whole")
        log.lost = {record.key for record in log.read(BLOBS, 0, 0)}
        claimed = await store.dequeue_many_rollouts(limit=2, command_id="a-call")
        assert [one.rollout_id for one in claimed] == [whole.rollout_id]
        assert [one.rollout_id for one in await store.dequeue_many_rollouts(limit=2, command_id="a-call")] == [whole.rollout_id]
        [row] = await store.query_rollouts(rollout_id_in=[lost.rollout_id])
        [attempt] = await store.query_attempts(lost.rollout_id)
        assert (row.status, attempt.status) == ("failed", "failed")
        assert "is missing from the log" in attempt.metadata["error"]
        assert await store.dequeue_rollout() is None
    log.close()


async def test_spans_and_blobs_carry_the_wall_clock_of_their_writer() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        attempted = await begin(store)
        clock.jump(3600)
        await store.add_span(span(attempted, attributes={"text": "x" * 1_000_000}))
        await store.get_next_span_sequence_id(attempted.rollout_id, attempted.attempt.attempt_id)
        now = int(clock.time() * 1_000_000)
        for topic, count in ((SPANS, 2), (BLOBS, 1)):
            log = store.engine.log
            records = [one for part in range(log.partitions(topic)) for one in log.read(topic, part, 0)]
            assert [one.timestamp_us for one in records] == [now] * count, topic


# The final reward that the event which ends an attempt carries


def _random_span(rng: Random, attempted: agl.AttemptedRollout) -> agl.Span:
    """With a reward or without, of today's and of older releases, numbered by the store or by its sender."""
    value = rng.choice([0.0, 1.0, -2.5, 1, True, 1e300])
    attributes: dict[str, Any] = rng.choice([
        {},
        {"agentlightning.reward.0.value": value},
        {"agentlightning.reward.1.value": 5.0, "agentlightning.reward.0.value": value},
        {"agentlightning.reward.1.value": 5.0},
        {"agentlightning.reward.0.name": "quality"},
        {"agentops.task.output": json.dumps({"type": "reward", "value": value})},
        {"reward": value},
        {"prompt": "what is a reward?", "big": "x" * rng.choice([1, 100_000])},
    ])  # fmt: skip
    name = rng.choice(["agentlightning.reward", "agentlightning.annotation", "other"])
    number = rng.choice([0, 0, rng.randrange(1, 6)])
    return span(attempted, name=name, attributes=attributes, sequence_id=number, span_id=f"{rng.randrange(12):016x}")


@pytest.mark.parametrize("shared", [False, True], ids=["one writer", "several writers"])
async def test_the_end_of_a_rollout_carries_the_final_reward_of_its_latest_attempt(shared: bool) -> None:
    """The one that `find_final_reward` gives for the spans as they are read, through any node and after a restart."""
    log, rng = MemoryLog(), Random(5)
    wanted: dict[str, float | None] = {}
    with ExitStack() as stack:

        def opened() -> list[EventLogStore]:
            options = {"foreign_writers": True} if shared else {}
            return [stack.enter_context(store_on(log, **options)) for _ in range(2 if shared else 1)]

        stores = opened()
        for number in range(60):
            if number == 30:
                stack.close()
                stores = opened()
            config = agl.RolloutConfig(max_attempts=2, retry_condition=["failed"])
            enqueued = await stores[0].enqueue_rollout(number, config=config)
            for _ in range(rng.randrange(1, 3)):
                attempted = await claim(stores[0])
                await stores[-1].wait_position(stores[0].position())
                for _ in range(rng.randrange(7)):
                    await rng.choice(stores).add_span(_random_span(rng, attempted))
                if rng.random() < 0.2:
                    for store in stores:
                        store.engine.spans._counters.clear()
                ending = rng.choice(stores)
                await ending.update_attempt(attempted.rollout_id, "latest", status="failed")
                await stores[0].wait_position(ending.position())
            if (await stores[0].query_rollouts(rollout_id_in=[enqueued.rollout_id]))[0].status != "failed":
                await stores[0].update_rollout(enqueued.rollout_id, status="cancelled")
            spans = await stores[0].query_spans(enqueued.rollout_id, "latest")
            wanted[enqueued.rollout_id] = find_final_reward(spans)
        facts = await take_facts(stores[0], 60, types=["rollout.completed"], since=-1)
    assert {str(one.rollout_id): one.data.get("reward") for one in facts} == wanted
    assert 10 < sum(one is not None for one in wanted.values()) < 55


async def test_an_attempt_that_expires_carries_the_reward_that_it_had(tmp_path: Path) -> None:
    clock = ManualClock()
    path = tmp_path / "log.db"
    with EventLogStore(SqliteLog(path), clock=clock) as store:
        config = agl.RolloutConfig(timeout_seconds=10)
        for number in range(2):
            attempted = await store.start_rollout(number, config=config)
            await store.add_span(span(attempted, name="r", attributes={"agentlightning.reward.0.value": 0.25 + number}))
            if number == 0:
                await pass_time(store.engine, clock, 12)
    with EventLogStore(SqliteLog(path), clock=clock) as store:  # the second one's spans are not in memory here
        await pass_time(store.engine, clock, 12)
        facts = await take_facts(store, 2, types=["rollout.completed"], since=-1)
    assert [(one.data["status"], one.data["reward"]) for one in facts] == [("failed", 0.25), ("failed", 1.25)]
