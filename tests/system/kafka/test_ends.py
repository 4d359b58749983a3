"""Where partitions end, as a broker says it that does not answer, or answers too low: without one, its words are played."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from agentlightning.core.errors import ForeignPosition, LogClosed, LogError
from agentlightning.core.log.kafka import KafkaAddress, KafkaLog
from agentlightning.core.log.kafka import end_offsets as ends
from agentlightning.core.log.kafka.aiokafka_api import TopicPartition
from agentlightning.core.log.kafka.end_offsets import Ends
from agentlightning.core.log.topics import SPANS, partition_of
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store
from tests.core.log.log_contract import append, new
from tests.projections.store.tools import span

from .test_kafka_log import make_topics

HERE, THERE = TopicPartition("t", 0), TopicPartition("t", 1)


class Played:
    """A client whose answers are given: a list for each partition, of which the last one stays; None is no answer."""

    def __init__(self, **answers: list[int | None]) -> None:
        self._answers = {int(name[1:]): row for name, row in answers.items()}
        self.asked: list[int] = []
        self.leaders: dict[int, int] = {}
        self.requests = 0
        self.updates = 0

    def leader(self, place: TopicPartition) -> int:
        return self.leaders.get(place.partition, place.partition)

    def update_metadata(self) -> None:
        self.updates += 1

    async def end_offsets(self, places: Iterable[Any]) -> dict[Any, int]:
        found: dict[Any, int] = {}
        self.requests += 1
        for place in places:
            row = self._answers[place.partition]
            answer = row.pop(0) if len(row) > 1 else row[0]
            self.asked.append(place.partition)
            if answer is None:
                await asyncio.sleep(3600)
            assert answer is not None
            found[place] = answer
        return found


def _ends(**answers: list[int | None]) -> tuple[Ends, Played]:
    made, played = Ends(KafkaAddress.parse("kafka://nowhere:1/t?wait_seconds=5")), Played(**answers)
    made._consumer = played
    return made, played


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(ends, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(ends, "STALE_SECONDS", 0.2)


async def test_a_partition_whose_leader_does_not_answer_holds_up_no_other_and_the_leader_is_asked_for_again() -> None:
    asked, played = _ends(p0=[None, None, 7], p1=[4])
    first = asyncio.ensure_future(asked.end(HERE))
    await asyncio.sleep(0)
    assert await asked.end(THERE) == 4
    assert not first.done() and await first == 7
    assert played.updates == 2


async def test_questions_of_many_about_one_partition_share_the_next_answer() -> None:
    asked, played = _ends(p0=[7])
    assert await asyncio.gather(*(asked.end(HERE) for _ in range(50))) == [7] * 50
    assert len(played.asked) == 1


async def test_questions_about_partitions_with_one_leader_share_a_request_and_follow_a_leader_that_changes() -> None:
    asked, played = _ends(p0=[7], p1=[None, 4, 5])
    played.leaders = {0: 3, 1: 3}
    first = asyncio.ensure_future(asked.end(THERE))
    await asyncio.sleep(0.01)
    other = asyncio.ensure_future(asked.end(HERE))
    await asyncio.sleep(0.01)
    played.leaders[0] = 4  # while the old leader does not answer
    assert await asyncio.wait_for(asyncio.gather(first, other), 5) == [4, 7]
    played.leaders[0], played.requests = 3, 0
    assert await asyncio.gather(asked.end(HERE), asked.end(THERE)) == [7, 5]
    assert played.requests == 1
    assert asked._tasks == {} and asked._waiting == {}


async def test_an_end_below_what_was_acknowledged_is_not_believed_for_some_seconds() -> None:
    asked, played = _ends(p0=[7, 7, 10])
    asked.acknowledged(HERE, 10)
    assert await asked.end(HERE) == 10
    assert played.updates == 2
    assert asked.known("t") == {0: 10}


async def test_questions_that_are_open_when_the_log_is_closed_are_answered() -> None:
    made, _ = _ends(p0=[None])
    answers: list[Any] = []
    made.ask(HERE, answers.append)
    await asyncio.sleep(0.01)
    made.ask(HERE, answers.append)
    [task] = made._tasks.values()
    task.cancel()
    await asyncio.wait([task])
    assert [type(answer) for answer in answers] == [LogClosed, LogClosed]


async def test_an_end_that_was_answered_once_is_known() -> None:
    asked, _ = _ends(p0=[7, 5, 8])
    assert [await asked.end(HERE), await asked.end(HERE)] == [7, 8]


async def test_what_another_node_was_told_makes_only_its_own_question_wait() -> None:
    asked, _ = _ends(p0=[7])
    answers: list[int | LogError] = []
    asked.ask(HERE, answers.append, at_least=9)
    assert await asked.end(HERE) == 7
    assert answers == []
    while not answers:
        await asyncio.sleep(0.01)
    assert answers == [7]


async def test_a_broker_that_stays_below_has_lost_records_and_is_believed(caplog: pytest.LogCaptureFixture) -> None:
    asked, played = _ends(p0=[7])
    asked.acknowledged(HERE, 10)
    with caplog.at_level(logging.ERROR):
        assert await asked.end(HERE) == 7
    assert "t[0] ends at 7, and records below 10 were acknowledged: the broker lost them." in caplog.text
    before = len(played.asked)
    assert await asked.end(HERE) == 7
    assert len(played.asked) == before + 1


def _too_low(store: EventLogStore, times: int) -> Callable[[], int]:
    """A broker of this node that says so many times more that each partition of spans is empty; how often it did."""
    log: Any = store.engine.log
    consumer, told = log._ends._consumer, [0]
    real = consumer.end_offsets

    async def end_offsets(places: Any) -> dict[Any, int]:
        found = await real(places)
        if places[0].topic.endswith(".spans") and told[0] < times:
            told[0] += 1
            return dict.fromkeys(found, 0)
        return found

    consumer.end_offsets = end_offsets
    return lambda: told[0]


async def test_a_span_that_was_acknowledged_by_one_node_is_shown_by_the_next_though_the_broker_says_it_is_not_there(
    kafka_url: str,
) -> None:
    await asyncio.to_thread(make_topics, kafka_url)
    first: Any = await asyncio.to_thread(open_store, kafka_url)
    second: Any = await asyncio.to_thread(open_store, kafka_url)
    try:
        rollout = await first.start_rollout("x")
        await first.add_span(span(rollout))
        part = partition_of(rollout.rollout_id, second.engine.log.partitions(SPANS))
        assert first.position().endswith(f"~{part}=1")
        await second.wait_position(first.position().partition("~")[0])
        told = _too_low(second, times=3)
        await second.wait_position(first.position())
        assert len(await second.query_spans(rollout.rollout_id)) == 1
        assert told() == 3
        with pytest.raises(ForeignPosition, match=f"partition {part} of spans ends at 1, and the caller was given .* 9"):
            await second.wait_position(first.position().partition("~")[0] + f"~{part}=9")
        assert await second.engine.spans.watermark(rollout.rollout_id) == 1
    finally:
        await asyncio.to_thread(first.close)
        await asyncio.to_thread(second.close)


async def test_the_watermark_of_an_end_says_where_the_spans_end_though_the_broker_says_less(kafka_url: str) -> None:
    await asyncio.to_thread(make_topics, kafka_url)
    first: Any = await asyncio.to_thread(open_store, kafka_url)
    second: Any = await asyncio.to_thread(open_store, kafka_url)
    try:
        rollout = await first.start_rollout("x")
        await first.add_span(span(rollout))
        await first.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
        told = _too_low(second, times=3)
        await second.wait_position(first.position().partition("~")[0])
        found = await second.query_spans(rollout.rollout_id)
        assert (len(found), getattr(found, "incomplete", False), told()) == (1, False, 3)
    finally:
        await asyncio.to_thread(first.close)
        await asyncio.to_thread(second.close)


def test_an_acknowledged_end_is_known_to_the_log(kafka_url: str) -> None:
    with KafkaLog(make_topics(kafka_url)) as log:
        append(log, SPANS, new(1), new(2), partition=3)
        assert log.known_ends(SPANS) == {3: 2}
