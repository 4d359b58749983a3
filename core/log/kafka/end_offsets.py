"""Where partitions end: asked of the broker that leads them, never below what is known to be acknowledged.

A broker that was frozen answers for a moment as if it still led its partitions, and then with an end that is too low. And
one that does not answer must hold up questions about its own partitions only, as must a topic that is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import LogClosed, LogError, StorageError
from .address import KafkaAddress
from .aiokafka_api import AIOKafkaConsumer, KafkaError, TopicPartition
from .preflight import NO_RIGHT, unreachable

logger = logging.getLogger(__name__)

ASK_SECONDS = 2.0
"""How long one question waits; then the client asks who leads the partition now, and puts the question again."""
RETRY_SECONDS = 0.1
STALE_SECONDS = 3.0
"""How long a broker may answer with an end below what was acknowledged before the records count as lost."""

OnEnd = Callable[["int | LogError"], None]
"""Given an end offset, or why it is not known; on the log's loop."""


@dataclass
class _Question:
    """`at_least`: what is known to be in the log, so that a lower answer is too low. `low_since`: when the first one came.

    `deadline`: so long a broker that is away is waited for.
    """

    at_least: int
    done: OnEnd
    deadline: float
    low_since: float | None = None


class Ends:
    """First and next offsets. Questions about partitions of a topic with one leader share a request, one at a time."""

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        self._wait_seconds = address.wait_seconds
        self._consumer: Any = None
        self._waiting: dict[TopicPartition, list[_Question]] = {}
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}
        self._known: dict[TopicPartition, int] = {}

    async def start(self) -> None:
        """Connect. Raises what the client raises."""
        options = {**self._address.client(), "request_timeout_ms": int(ASK_SECONDS * 1000)}
        self._consumer = AIOKafkaConsumer(**options, group_id=None)
        await self._consumer.start()

    async def stop(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            await self._consumer.stop()

    def known(self, topic: str) -> dict[int, int]:
        """Partition -> the end below which records are known to be in the log; what became known last comes last."""
        return {place.partition: end for place, end in self._known.copy().items() if place.topic == topic}

    def acknowledged(self, place: TopicPartition, end: int) -> None:
        """Records below `end` are in the log: no later answer may be lower. On the log's loop."""
        if end > self._known.get(place, 0):
            self._known.pop(place, None)
            self._known[place] = end

    def ask(self, place: TopicPartition, done: OnEnd, at_least: int = 0) -> None:
        """Give `done` the offset of the next record, asked after this call: what was acknowledged before lies below it.

        `at_least`: an end that somebody else knows. A broker that answers with less gets some seconds to catch up.
        """
        deadline = asyncio.get_running_loop().time() + self._wait_seconds
        question = _Question(max(at_least, self._known.get(place, 0)), done, deadline)
        self._waiting.setdefault(place, []).append(question)
        self._begin(place)

    def _begin(self, place: TopicPartition) -> None:
        led = self._led(place)
        if led not in self._tasks:
            self._tasks[led] = asyncio.get_running_loop().create_task(self._ask(led))

    def _led(self, place: TopicPartition) -> Hashable:
        """What places have in common whose ends are asked for in one request."""
        leader = self._consumer.leader(place)
        return place if leader is None else (place.topic, leader)

    async def end(self, place: TopicPartition) -> int:
        """As `ask`. Raises `StorageError` where the broker does not answer in time."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def done(end: int | LogError) -> None:
            if future.done():
                return
            if isinstance(end, LogError):
                future.set_exception(end)
            else:
                future.set_result(end)

        self.ask(place, done)
        return await future

    async def first(self, place: TopicPartition) -> int:
        """The first offset that is still there. Raises as `end`."""
        return int((await self._insist(lambda: self._consumer.beginning_offsets([place])))[place])

    async def _ask(self, led: Hashable) -> None:
        asked: dict[TopicPartition, list[_Question]] = {}
        closed = True
        try:
            while asked := self._take(led):
                found = await self._request(list(asked))
                left = [place for place in list(asked) if self._answer(place, asked.pop(place), found[place])]
                if left:
                    self._consumer.update_metadata()
                    await asyncio.sleep(RETRY_SECONDS)
                self._begin_left()
            closed = False
        finally:
            del self._tasks[led]
            if closed:
                rows = [*asked.values(), *self._waiting.values()]
                self._waiting.clear()
                for question in [one for row in rows for one in row]:
                    question.done(LogClosed("the log was closed"))
            self._begin_left()

    def _begin_left(self) -> None:
        """Ask where partitions end whose leader is another one by now."""
        for place in list(self._waiting):
            self._begin(place)

    def _take(self, led: Hashable) -> dict[TopicPartition, list[_Question]]:
        return {place: self._waiting.pop(place) for place in list(self._waiting) if self._led(place) == led}

    async def _request(self, places: list[TopicPartition]) -> dict[TopicPartition, int | Exception]:
        """The end of each, or why it is not known."""
        try:
            return {**await asyncio.wait_for(self._consumer.end_offsets(places), ASK_SECONDS)}
        except NO_RIGHT as error:
            return dict.fromkeys(places, unreachable(self._address, error))
        except (KafkaError, OSError, asyncio.TimeoutError) as error:
            return dict.fromkeys(places, error)

    def _answer(self, place: TopicPartition, asked: Sequence[_Question], end: int | Exception) -> bool:
        """Answer the questions for which `end` is not too low, or was for too long; whether some have to be asked again."""
        now = asyncio.get_running_loop().time()
        left: list[_Question] = []
        for question in asked:
            if isinstance(end, LogError):
                question.done(end)
            elif isinstance(end, Exception):
                if now < question.deadline:
                    left.append(question)
                else:
                    question.done(self._silent(end))
            elif end < question.at_least and not self._stale(question, now):
                left.append(question)
            else:
                if end < question.at_least:
                    self._lost(place, end)
                question.done(end)
        if not isinstance(end, Exception):
            self.acknowledged(place, end)
        if left:
            self._waiting[place] = [*left, *self._waiting.get(place, ())]
        return bool(left)

    def _stale(self, question: _Question, now: float) -> bool:
        question.low_since = now if question.low_since is None else question.low_since
        return now - question.low_since > STALE_SECONDS

    def _silent(self, error: Exception) -> StorageError:
        return StorageError(f"the broker did not answer for {self._wait_seconds:g} s: {type(error).__name__}: {error}")

    def _lost(self, place: TopicPartition, end: int) -> None:
        """The broker goes on to say that the partition ends before what it acknowledged: it is believed."""
        known = self._known.get(place, 0)
        if end < known:
            where = f"{place.topic}[{place.partition}]"
            logger.error("%s ends at %d, and records below %d were acknowledged: the broker lost them.", where, end, known)
            self._known[place] = end

    async def _insist(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Ask until the broker answers: one that is away, or has no leader yet, comes back. Raises `StorageError`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_seconds
        while True:
            try:
                return await asyncio.wait_for(ask(), ASK_SECONDS)
            except NO_RIGHT as error:
                raise unreachable(self._address, error) from error
            except (KafkaError, OSError, asyncio.TimeoutError) as error:
                if loop.time() >= deadline:
                    raise self._silent(error) from error
                self._consumer.update_metadata()
                await asyncio.sleep(RETRY_SECONDS)
