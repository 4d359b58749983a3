"""A member of a group on Kafka loses nothing while the group deals its partitions anew; a consumer that tests hold."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from agentlightning.core.log.kafka import KafkaAddress
from agentlightning.core.log.kafka import consumer_group as membership
from agentlightning.core.log.kafka.consumer_group import KafkaMember

PLACE, OTHER = TopicPartition("p.facts", 0), TopicPartition("p.facts", 1)


class Consumer:
    """Brings what lies behind its position, as the real one does also before it has told of an assignment."""

    def __init__(self) -> None:
        self.positions = {PLACE: 5, OTHER: 0}
        self.answer = asyncio.Event()
        self.failures = 0

    async def getmany(self, **_: Any) -> dict[TopicPartition, list[Any]]:
        found: dict[TopicPartition, list[Any]] = {}
        for place, position in self.positions.items():
            end = min(position + 2, 10)
            found[place] = [
                SimpleNamespace(partition=place.partition, offset=offset, key=b"k", value=b"v", timestamp=0, headers=())
                for offset in range(position, end)
            ]
            self.positions[place] = end
        return {place: messages for place, messages in found.items() if messages}

    async def committed(self, place: TopicPartition) -> int:
        await self.answer.wait()
        if self.failures:
            self.failures -= 1
            raise KafkaConnectionError
        return 5

    def seek(self, place: TopicPartition, position: int) -> None:
        self.positions[place] = position

    def assignment(self) -> set[TopicPartition]:
        return set(self.positions)


def member_of(consumer: Consumer) -> KafkaMember:
    made: Any = KafkaMember(
        None, KafkaAddress.parse("kafka://h/p"), "g", ["facts"], "m", None, lambda _: None  # type: ignore[arg-type]
    )
    made._consumer = consumer
    return made


async def fetch(member: Any) -> list[tuple[int, int]]:
    return [(one.partition, one.offset) for one in await member._fetch(100, 0.0)]


async def test_what_was_fetched_while_the_group_dealt_is_fetched_again() -> None:
    consumer = Consumer()
    member = member_of(consumer)
    dealing = asyncio.ensure_future(member.assigned([PLACE]))
    await asyncio.sleep(0)
    assert await fetch(member) == []  # brought and not taken
    assert consumer.positions[PLACE] == 7
    consumer.answer.set()
    await dealing
    consumer.positions.pop(OTHER)
    assert await fetch(member) + await fetch(member) + await fetch(member) == [(0, offset) for offset in range(5, 10)]


async def test_what_is_kept_goes_on_where_it_was_and_a_broker_that_fails_is_asked_again() -> None:
    consumer = Consumer()
    member: Any = member_of(consumer)
    member._positions = {PLACE: 8}
    consumer.failures = 2
    consumer.answer.set()
    consumer.positions[PLACE] = 5  # the client begins at the commit, which is behind what was polled
    await asyncio.wait_for(member.assigned([PLACE, OTHER]), 5)
    assert consumer.positions == {PLACE: 8, OTHER: 5}
    assert member.assignment() == {("facts", 0), ("facts", 1)}


async def test_a_poll_that_waited_asks_the_broker_for_no_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle member of a group with many partitions would ask for all of them at each poll."""
    asked: list[TopicPartition] = []

    async def end(place: TopicPartition) -> int:
        asked.append(place)
        return 5

    consumer = Consumer()
    consumer.positions = {PLACE: 10}
    member: Any = member_of(consumer)
    member._ends = SimpleNamespace(end=end)
    member._positions = {PLACE: 10, OTHER: 5}
    monkeypatch.setattr(membership, "SURE_SECONDS", 0.05)
    assert await member._poll(1, 0.05) == [] and asked == []
    assert await member._poll(1, 0.0) == [] and asked == [PLACE, OTHER]
