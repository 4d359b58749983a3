"""Numbers of spans among several writers: each follows from the place in the log, and what is known is not read again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.log.interface import Log, Record
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import SPANS, partition_of
from agentlightning.core.spans.rewards import find_final_reward
from agentlightning.projections.spans import span_log
from agentlightning.projections.store.store import EventLogStore

from ..store.tools import Unclosed, begin, span, store_on, take_facts


class Reads(Unclosed):
    """Counts the questions for the spans of a rollout, and answers each after `seconds`."""

    def __init__(self, log: Log, seconds: float = 0.0) -> None:
        super().__init__(log)
        self.seconds = seconds
        self.reads = 0

    def read_key(self, topic: str, key: str, **options: Any) -> Sequence[Record]:
        self.reads += topic == SPANS
        time.sleep(self.seconds)
        return self._log.read_key(topic, key, **options)


async def _numbered(store: EventLogStore, attempted: agl.AttemptedRollout) -> list[int]:
    ids = (attempted.rollout_id, attempted.attempt.attempt_id)
    first, second = span(attempted), span(attempted)
    many = await store.add_many_spans([first, second, first])
    reserved = await store.get_many_span_sequence_ids([ids, ids])
    one = await store.add_span(span(attempted, name="r", attributes={"agentlightning.reward.0.value": 0.5}))
    assert one is not None
    return [*(each.sequence_id for each in many), *reserved, one.sequence_id]


async def test_a_node_that_is_the_only_writer_reads_nothing_to_number_spans_and_to_end_their_rollouts() -> None:
    log = Reads(MemoryLog())
    with store_on(log, foreign_writers=True) as store:
        begun = [await begin(store) for _ in range(8)]
        for _ in range(2):
            await asyncio.gather(*(store.add_span(span(one)) for one in begun))
        assert await asyncio.gather(*(_numbered(store, one) for one in begun)) == [[3, 4, 5, 6, 7]] * 8
        for one in begun:
            await store.update_attempt(one.rollout_id, one.attempt.attempt_id, status="succeeded")
        assert log.reads == 0
        facts = await take_facts(store, 8, types=["rollout.completed"], since=-1)
        assert [fact.data["reward"] for fact in facts] == [0.5] * 8
        assert [one.sequence_id for one in await store.query_spans(begun[0].rollout_id)] == [1, 2, 3, 4, 7]


async def test_what_another_node_wrote_in_between_is_read_once_and_then_the_node_goes_on_by_itself() -> None:
    log = MemoryLog()
    here, there = Reads(log), Reads(log)
    with store_on(here, foreign_writers=True) as store, store_on(there, foreign_writers=True) as other:
        one = await begin(store)
        await other.wait_position(store.position())
        assert [(await each.add_span(span(one))).sequence_id for each in (store, other, store, store, store)] == [1, 2, 3, 4, 5]  # pyright: ignore[reportOptionalMemberAccess]
        assert (here.reads, there.reads) == (1, 1)


@pytest.mark.parametrize("seed", range(4))
async def test_numbers_are_those_of_the_log_however_appends_and_readings_of_two_nodes_meet(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters are dropped all the time, and a reading takes long enough for other appends to pass it."""
    monkeypatch.setattr(span_log, "HOT_COUNTERS", 2)
    rng, log = Random(seed), MemoryLog()
    with (
        store_on(Reads(log, 0.002), foreign_writers=True) as first,
        store_on(Reads(log), foreign_writers=True) as second,
    ):
        stores = (first, second)
        begun = [await begin(first) for _ in range(4)]
        await second.wait_position(first.position())
        given: dict[str, list[int]] = {one.rollout_id: [] for one in begun}
        reserved: dict[str, list[int]] = {one.rollout_id: [] for one in begun}

        async def write(store: EventLogStore, rng: Random) -> None:
            for _ in range(40):
                one = rng.choice(begun)
                if rng.random() < 0.2:
                    number = await store.get_next_span_sequence_id(one.rollout_id, one.attempt.attempt_id)
                    reserved[one.rollout_id].append(number)
                else:
                    value = rng.choice([None, rng.random()])
                    attributes = {} if value is None else {"agentlightning.reward.0.value": value}
                    stored = await store.add_span(span(one, attributes=attributes))
                    assert stored is not None
                    given[one.rollout_id].append(stored.sequence_id)

        await asyncio.gather(*(write(stores[at % 2], Random(rng.random())) for at in range(8)))
        wanted: dict[str, float | None] = {}
        for one in begun:
            found = await second.query_spans(one.rollout_id)
            assert sorted(each.sequence_id for each in found) == sorted(given[one.rollout_id])
            numbers = Counter([*given[one.rollout_id], *reserved[one.rollout_id]])
            assert numbers == Counter(range(1, numbers.total() + 1)), "a number was given twice, or none"
            wanted[one.rollout_id] = find_final_reward(found)
            await rng.choice(stores).update_attempt(one.rollout_id, "latest", status="succeeded")
        facts = await take_facts(first, 4, types=["rollout.completed"], since=-1)
        assert {str(fact.rollout_id): fact.data.get("reward") for fact in facts} == wanted


async def test_records_behind_what_a_reading_was_for_do_not_enter_before_those_of_others() -> None:
    """While one append is read for, another node's record and a later own one get into the log."""
    log = MemoryLog()

    class Late(Reads):
        """Asks the log late, when more is in it; of that it knows what it has appended itself, as one on Kafka does."""

        def read_key(self, topic: str, key: str, **options: Any) -> Sequence[Record]:
            if topic != SPANS or self.reads:
                return super().read_key(topic, key, **options)
            self.reads += 1
            asyncio.run_coroutine_threadsafe(meanwhile(), loop).result(10)
            return [one for one in super().read_key(topic, key, **options) if one.offset != options["within"].end]

    loop = asyncio.get_running_loop()
    later: list[asyncio.Task[Any]] = []

    async def meanwhile() -> None:
        numbers.append((await other.add_span(span(one))).sequence_id)  # pyright: ignore[reportOptionalMemberAccess]
        later.append(asyncio.ensure_future(store.add_span(span(one))))
        while log.ends(SPANS, part)[1] < 4:
            await asyncio.sleep(0.001)

    numbers: list[int] = []
    with store_on(Late(log), foreign_writers=True) as store, store_on(log, foreign_writers=True) as other:
        one = await begin(store)
        await other.wait_position(store.position())
        part = partition_of(one.rollout_id, log.partitions(SPANS))
        numbers.append((await other.add_span(span(one))).sequence_id)  # pyright: ignore[reportOptionalMemberAccess]
        numbers.append((await store.add_span(span(one))).sequence_id)  # pyright: ignore[reportOptionalMemberAccess]
        numbers += [(await each).sequence_id for each in later]
        assert sorted(numbers) == [1, 2, 3, 4]
        found = await other.query_spans(one.rollout_id)
        assert [each.sequence_id for each in found] == [1, 2, 3, 4]
        assert numbers == [1, 3, 2, 4]
