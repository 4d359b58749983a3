"""An appender knows which offsets are its own, so that a follower of the partition needs not read them back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from agentlightning.core.log.append_checks import check_append
from agentlightning.core.log.interface import Ack, NewRecord
from agentlightning.core.log.kafka.appender import Appender
from agentlightning.core.log.topics import CONTROL


class Broker:
    """A producer whose batches get the offsets that the test gives, once it gives them."""

    def __init__(self) -> None:
        self.offsets: asyncio.Queue[int] = asyncio.Queue()

    async def get(self) -> Any:
        return self

    def create_batch(self) -> Any:
        return SimpleNamespace(append=lambda **_: True, close=lambda: None)

    async def send_batch(self, *_: Any, **__: Any) -> Any:
        async def answer() -> Any:
            return SimpleNamespace(offset=await self.offsets.get())

        return asyncio.ensure_future(answer())


async def test_what_was_written_here_is_known_from_the_answers_and_a_gap_begins_anew() -> None:
    broker: Any = Broker()
    acks: list[Any] = []
    appender = Appender("t", 0, wait_seconds=5, producer=broker, written=lambda *_: None)

    async def append(count: int, offset: int) -> None:
        appender.put(check_append(CONTROL, 0, [NewRecord("", b"x", 0)] * count, acks.append))
        broker.offsets.put_nowait(offset)
        while not acks:
            await asyncio.sleep(0)
        assert acks.pop() == Ack(offset, count)

    await append(2, 10)
    await append(3, 12)
    assert await appender.owns(10, 15, 0) and await appender.owns(12, 13, 0)
    assert not await appender.owns(9, 15, 0) and not await appender.owns(10, 16, 0)
    await append(1, 17)  # somebody else wrote two in between
    assert await appender.owns(17, 18, 0) and not await appender.owns(12, 18, 0)


async def test_who_asks_about_a_batch_under_way_waits_for_its_answer_and_not_for_long() -> None:
    broker: Any = Broker()
    appender = Appender("t", 0, wait_seconds=5, producer=broker, written=lambda *_: None)
    appender.put(check_append(CONTROL, 0, [NewRecord("", b"x", 0)], lambda _: None))
    assert not await appender.owns(0, 1, 0.01)
    asking = asyncio.ensure_future(appender.owns(0, 1, 5))
    await asyncio.sleep(0.01)
    assert not asking.done()
    broker.offsets.put_nowait(0)
    assert await asyncio.wait_for(asking, 1)
