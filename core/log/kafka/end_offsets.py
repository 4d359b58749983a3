"""Where partitions end: asked of the broker partition by partition, never below what is known to be acknowledged.

A broker that was frozen answers for a moment as if it still led its partitions, and then with an end that is too low. And
one that does not answer must hold up questions about its own partitions only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
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
    """`at_least`: what is known to be in the log, so that a lower answer is too low. `low_since`: when the first one came."""

    at_least: int
    done: OnEnd
    low_since: float | None = None


class Ends:
    """First and next offsets. Questions about a partition that come while one is under way share the next one."""

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        self._wait_seconds = address.wait_seconds
        self._consumer: Any = None
        self._waiting: dict[TopicPartition, list[_Question]] = {}
        self._tasks: dict[TopicPartition, asyncio.Task[None]] = {}
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
        question = _Question(max(at_least, self._known.get(place, 0)), done)
        self._waiting.setdefault(place, []).append(question)
        if place not in self._tasks:
            self._tasks[place] = asyncio.get_running_loop().create_task(self._ask(place))

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

    async def _ask(self, place: TopicPartition) -> None:
        asked: list[_Question] | None = None
        try:
            while asked := self._waiting.pop(place, None):
                end: int | LogError
                try:
                    end = int((await self._insist(lambda: self._consumer.end_offsets([place])))[place])
                except StorageError as error:
                    end = error
                left, asked = self._answer(place, asked, end), None
                if left:
                    self._waiting[place] = [*left, *self._waiting.get(place, ())]
                    self._consumer.update_metadata()
                    await asyncio.sleep(RETRY_SECONDS)
        finally:  # with something left only where the log is closed meanwhile
            del self._tasks[place]
            for question in [*(asked or ()), *self._waiting.pop(place, ())]:
                question.done(LogClosed("the log was closed"))

    def _answer(self, place: TopicPartition, asked: Sequence[_Question], end: int | LogError) -> list[_Question]:
        """Answer the questions for which `end` is not too low, or was for too long; return the others."""
        now = asyncio.get_running_loop().time()
        left: list[_Question] = []
        for question in asked:
            if not isinstance(end, LogError) and end < question.at_least:
                question.low_since = now if question.low_since is None else question.low_since
                if now - question.low_since <= STALE_SECONDS:
                    left.append(question)
                    continue
                self._lost(place, end)
            question.done(end)
        if not isinstance(end, LogError):
            self.acknowledged(place, end)
        return left

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
                    raise StorageError(
                        f"the broker did not answer for {self._wait_seconds:g} s: {type(error).__name__}: {error}"
                    ) from error
                self._consumer.update_metadata()
                await asyncio.sleep(RETRY_SECONDS)
