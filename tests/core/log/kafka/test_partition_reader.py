"""A follower leaves out what its own process wrote and applied, and hands over what the process waits for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from agentlightning.core.log.interface import Record
from agentlightning.core.log.kafka import KafkaAddress, partition_reader
from agentlightning.core.log.kafka.partition_reader import PartitionFollower
from agentlightning.core.log.local.follower import Follower
from agentlightning.core.log.topics import CONTROL

PLACE = TopicPartition("p.control", 0)


class Consumer:
    """A partition with so many records, of which a call brings what lies behind the position."""

    def __init__(self) -> None:
        self.position = self.end = self.seeks = 0

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def assign(self, places: Any) -> None: ...
    def pause(self, place: Any) -> None: ...
    def resume(self, place: Any) -> None: ...

    def seek(self, place: Any, position: int) -> None:
        self.position = position
        self.seeks += 1

    async def getmany(self, place: Any, **_: Any) -> dict[Any, list[Any]]:
        await asyncio.sleep(0.001)
        found = [
            SimpleNamespace(partition=0, offset=offset, key=None, value=b"v", timestamp=0, headers=())
            for offset in range(self.position, self.end)
        ]
        self.position = max(self.position, self.end)
        return {place: found} if found else {}


async def test_own_records_are_left_out_where_they_were_applied_and_handed_over_where_they_were_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are not where another writer's record came between: the process then waits for all of it from here."""
    consumer, seen = Consumer(), list[int]()
    monkeypatch.setattr(partition_reader, "make_consumer", lambda *_, **__: consumer)

    def take(records: Any) -> None:
        found: list[Record] = list(records)
        seen.extend(record.offset for record in found)

    async def own(first: int, end: int, wait_seconds: float) -> bool:
        return True

    follower = Follower("control", 0, take, lambda error: None, lambda _: None)
    made = PartitionFollower(KafkaAddress.parse("kafka://h/p"), CONTROL, PLACE, follower, own, lambda _: None)
    try:
        follower.passed(5)
        consumer.end = 3
        await made.reach(5, 5)
        assert (seen, follower.next, consumer.position) == ([], 5, 5), "what was applied meanwhile is not fetched at all"
        consumer.end = 9
        await made.reach(9, 5)
        assert seen == [5, 6, 7, 8] and follower.next == 9
    finally:
        made.task.cancel()
        await asyncio.wait([made.task])
