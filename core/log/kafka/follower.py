"""Following a partition: a consumer without a group, a thread that hands over, and an eye on gaps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...errors import LogError, OffsetLost
from ..local.follower import Follower
from .address import KafkaAddress
from .aiokafka_api import KafkaError, OffsetOutOfRangeError, TopicPartition
from .partition_reader import LONG_FETCH_MS, make_consumer
from .record_codec import record_in

logger = logging.getLogger(__name__)

FOLLOW_RECORDS = 2048
POLL_MS = 1000
STOP_SECONDS = 3.0


class PartitionFollower:
    """Follows one partition that keeps all its records; any hole in its offsets is an `OffsetLost`."""

    def __init__(
        self,
        address: KafkaAddress,
        topic: str,
        place: TopicPartition,
        follower: Follower,
        ended: Callable[[PartitionFollower], None],
    ) -> None:
        self.follower = follower
        self.place = place
        self._address = address
        self._topic = topic
        self._ended = ended
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"agl-follow-{topic}")
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        consumer: Any = None
        try:
            while not self.follower.closed:
                try:
                    if consumer is None:
                        consumer = make_consumer(self._address, fetch_max_wait_ms=LONG_FETCH_MS)
                        await consumer.start()
                        consumer.assign([self.place])
                        consumer.seek(self.place, self.follower.next)
                    await self._step(consumer)
                except OffsetOutOfRangeError:
                    raise self._lost() from None
                except (KafkaError, OSError) as error:
                    logger.warning("Following %s failed (%s); it goes on as soon as the broker answers.", self._topic, error)
                    await stop_quietly(consumer)
                    consumer = None
                    await asyncio.sleep(0.5)
        except LogError as error:
            await self._deliver(self.follower.fail, error)
        finally:
            await stop_quietly(consumer)
            self._executor.shutdown(wait=False)
            self._ended(self)

    def _lost(self) -> OffsetLost:
        where = f"{self.place.topic}[{self.place.partition}]"
        offset = self.follower.next
        return OffsetLost(f"{where} has no offset {offset}: it got shorter, or is another topic", offset=offset)

    async def _step(self, consumer: Any) -> None:
        fetched = await consumer.getmany(self.place, timeout_ms=POLL_MS, max_records=FOLLOW_RECORDS)
        messages = fetched.get(self.place, ())
        if not messages or self.follower.closed:
            return
        first, last = self.follower.next, messages[-1].offset
        if messages[0].offset != first or last - first != len(messages) - 1:
            raise OffsetLost(f"{self.place.topic}[{self.place.partition}] has a hole at offset {first}", offset=first)
        if last < self.follower.known_below:
            self.follower.next = last + 1  # our own records, applied when they were acknowledged
            return
        await self._deliver(self.follower.deliver, [record_in(self._topic, message) for message in messages])

    async def _deliver(self, take: Callable[[Any], None], what: Any) -> None:
        """In a thread of its own, whatever it does: the loop goes on writing meanwhile."""
        await asyncio.get_running_loop().run_in_executor(self._executor, take, what)

    async def reach(self, end: int, timeout_seconds: float) -> None:
        """Wait until everything below `end` was handed over."""
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while self.follower.next < end and not self.follower.closed and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)


async def stop_quietly(client: Any) -> None:
    """Stop a client that may have failed before; its error then is no news."""
    if client is not None:
        await bounded(client.stop())


async def bounded(stopping: Awaitable[Any]) -> None:
    """Wait some seconds at most for what stops: its broker may be away, and the connections end with their loop."""
    try:
        await asyncio.wait_for(stopping, STOP_SECONDS)
    except (KafkaError, OSError, asyncio.TimeoutError) as error:
        logger.debug("A client of the broker did not stop cleanly: %r", error)
