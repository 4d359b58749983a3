"""The answers to hard questions about spans, by their numbers: watermarks, what is gone, and two writing stores."""

from __future__ import annotations

import asyncio
import random

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.core.events import codec
from agentlightning.core.events.schema import RolloutUpdated
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.projections.spans import span_log
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.server.server import LightningStoreServer

from .logs import LosingLog
from .tools import begin, control_values, span, store_on


async def test_22_the_watermark_of_a_cancel_covers_every_span_acknowledged_before_it() -> None:
    """Two nodes write spans, a third one cancels: the watermark is the log's end, not what one node has written."""
    log = MemoryLog()
    with store_on(log, foreign_writers=True) as first, store_on(log, foreign_writers=True) as second:
        attempted = await begin(first)
        await second.wait_position(first.position())
        for number in range(4):
            stored = await (first if number % 2 else second).add_span(span(attempted))
            assert stored is not None
        _, cancelled = await asyncio.gather(
            first.add_many_spans([span(attempted) for _ in range(3)]),
            second.update_rollout(attempted.rollout_id, status="cancelled"),
        )
        await first.wait_position(second.position())
        late = await first.add_span(span(attempted))
        assert cancelled.status == "cancelled" and late is not None
    events = [codec.decode(value).event for value in control_values(log)]
    (mark,) = [one.watermark for one in events if isinstance(one, RolloutUpdated)]
    assert mark is not None and 4 <= mark <= 7
    log.close()


async def _ended(store: EventLogStore, spans: int) -> agl.AttemptedRollout:
    attempted = await begin(store)
    await store.add_many_spans([span(attempted) for _ in range(spans)])
    await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
    return attempted


async def _incomplete(store: agl.LightningStore, attempted: agl.AttemptedRollout) -> tuple[int, bool]:
    found = await asyncio.wait_for(store.query_spans(attempted.rollout_id), 5)
    dumped = found.model_dump()
    assert dumped.get("incomplete", False) == getattr(found, "incomplete", False)
    return found.total, "incomplete" in dumped


async def test_23_a_watermark_behind_a_topic_that_was_made_anew_is_answered_and_marked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = LosingLog(MemoryLog())
    with store_on(log) as store:
        before = await _ended(store, 3)
        silent = await _ended(store, 0)
        assert await _incomplete(store, before) == (3, False)
        log.make_anew()
        assert await _incomplete(store, before) == (0, True)
        assert before.rollout_id in caplog.text
        await store.add_span(span(before))
        assert await _incomplete(store, before) == (1, True)
        after = await _ended(store, 2)
        assert await _incomplete(store, after) == (2, False)
        assert (await store.query_spans("ro-unknown")).total == 0
        assert (await _incomplete(store, silent))[0] == 0


async def test_23_what_retention_took_is_answered_and_marked_also_through_the_door() -> None:
    log = LosingLog(MemoryLog())
    clock = ManualClock()
    with store_on(log, clock=clock) as store:
        old = await _ended(store, 4)
        clock.advance(60)
        young = await _ended(store, 4)
        queued = await store.enqueue_rollout("nothing to lose")
        for first, expected in ((0, (4, False)), (2, (2, True)), (4, (0, True)), (5, (0, True)), (8, (0, True))):
            log.prune(first)
            assert await _incomplete(store, old) == expected
        for first, expected in ((2, (4, False)), (6, (2, True)), (8, (0, True))):
            log.prune(first)
            assert await _incomplete(store, young) == expected
        assert not hasattr(await store.query_spans(queued.rollout_id), "incomplete")
        server = LightningStoreServer(store, port=0)
        await server.start()
        client = LightningStoreClient(server.endpoint)
        assert await _incomplete(client, young) == (0, True)
        log.prune(0)
        assert await _incomplete(client, young) == (4, False)
        await client.close()
        await server.stop()


async def test_24_two_writing_stores_alternate_one_restarts_and_no_number_is_given_twice() -> None:
    log = MemoryLog()
    with store_on(log, foreign_writers=True) as first:
        attempted = await begin(first)
        pair = (attempted.rollout_id, attempted.attempt.attempt_id)
        order: list[int] = []
        sent: list[tuple[int, str]] = []
        for _ in range(4):
            with store_on(log, foreign_writers=True) as second:  # a new life of the second writer
                for number in range(6):
                    store = (first, second)[number % 2]
                    if number % 3 == 0:
                        order.append(await store.get_next_span_sequence_id(*pair))
                    stored = await store.add_span(span(attempted))
                    assert stored is not None
                    order.append(stored.sequence_id)
                    sent.append((stored.sequence_id, stored.span_id))
                    assert await (second, first)[number % 2].add_span(stored) is None, "the other one knows it too"
                assert (await second.statistics()).get("total_spans") == len(sent)
        assert order == list(range(1, len(order) + 1))
        assert [(one.sequence_id, one.span_id) for one in await first.query_spans(attempted.rollout_id)] == sent
        assert (await first.statistics()).get("total_spans") == len(sent)
    log.close()


@pytest.mark.parametrize("hot", [1, 200_000])
async def test_24_two_writing_stores_at_once_agree_with_every_reader(hot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where counters are dropped from memory all the time, with explicit numbers and the same span from both."""
    monkeypatch.setattr(span_log, "HOT_SPANS", hot)
    log = MemoryLog()
    chance = random.Random(24)
    with store_on(log, foreign_writers=True) as first, store_on(log, foreign_writers=True) as second:
        rollouts = [await begin(first) for _ in range(3)]
        await second.wait_position(first.position())
        reserved: dict[str, list[int]] = {one.rollout_id: [] for one in rollouts}
        told: dict[str, int] = {}

        async def writer(store: EventLogStore) -> None:
            for _ in range(25):
                one = chance.choice(rollouts)
                if chance.random() < 0.3:
                    pair = (one.rollout_id, one.attempt.attempt_id)
                    reserved[one.rollout_id].append(await store.get_next_span_sequence_id(*pair))
                    continue
                for stored in await store.add_many_spans([span(one), span(chance.choice(rollouts))]):
                    assert told.setdefault(stored.span_id, stored.sequence_id) == stored.sequence_id

        async def both(one: agl.AttemptedRollout) -> None:
            same = span(one)
            stored = await asyncio.gather(first.add_span(same), second.add_span(same))
            assert [answer is None for answer in stored].count(True) == 1, "one of them stored it"
            told.update({answer.span_id: answer.sequence_id for answer in stored if answer is not None})

        await asyncio.gather(*(writer(store) for store in (first, second) * 4), *(both(one) for one in rollouts * 5))
        for one in rollouts:
            for store in (first, second):
                found = list(await store.query_spans(one.rollout_id))
                assert {each.span_id: each.sequence_id for each in found}.items() <= told.items()
                numbers = sorted([each.sequence_id for each in found] + reserved[one.rollout_id])
                assert numbers == list(range(1, len(numbers) + 1)), "none twice, none left out"
        assert sum([(await first.query_spans(one.rollout_id)).total for one in rollouts]) == len(told)
    log.close()
