"""Reading a partition by offset: one consumer a partition, without a group, that refuses to skip what is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ...errors import OffsetLost, StorageError
from ..interface import Record
from .address import KafkaAddress
from .aiokafka_api import AIOKafkaConsumer, KafkaError, OffsetOutOfRangeError, TopicPartition
from .end_offsets import Ends
from .record_codec import record_in

FETCH_BYTES = 8 << 20
RETRY_SECONDS = 0.25
IDLE_FETCH_MS = 20
"""The broker answers a connection's requests one after the other: a fetch that waits for records holds up a later one."""
LONG_FETCH_MS = 2500
"""How long a client with one partition waits for records: the broker answers as soon as there are some, and an idle process
asks five times less often than by default. Below the deadline of a request (`KafkaAddress.client`)."""
READ_SECONDS = 60.0
"""How long a read waits for a broker that is away."""


def make_consumer(address: KafkaAddress, **more: Any) -> Any:
    """A consumer without a group: it never resets an offset by itself."""
    options = {"max_partition_fetch_bytes": FETCH_BYTES, **more}
    return AIOKafkaConsumer(
        **address.client(), group_id=None, enable_auto_commit=False, auto_offset_reset="none", **options
    )


async def insisting(ask: Callable[[], Awaitable[Any]], wait_seconds: float) -> Any:
    """Ask until the broker answers: one that is away, or has no leader yet, comes back. Raises `StorageError` in the end."""
    deadline = asyncio.get_running_loop().time() + wait_seconds
    while True:
        try:
            return await asyncio.wait_for(ask(), max(deadline - asyncio.get_running_loop().time(), 1.0))
        except OffsetOutOfRangeError:
            raise
        except (KafkaError, OSError, asyncio.TimeoutError) as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise StorageError(
                    f"the broker did not answer for {wait_seconds:g} s: {type(error).__name__}: {error}"
                ) from error
            await asyncio.sleep(RETRY_SECONDS)


class PartitionReader:
    """Reads on in one partition; going on where the last read stopped costs no question to the broker."""

    def __init__(self, address: KafkaAddress, topic: str, place: TopicPartition, ends: Ends) -> None:
        self._address = address
        self._topic = topic
        self._place = place
        self._ends = ends
        self._consumer: Any = None
        self._position = -1
        self._end = 0
        self._lock = asyncio.Lock()

    async def read(self, offset: int, most: int) -> Sequence[Record]:
        """As `Log.read`."""
        async with self._lock:
            if offset >= self._end:
                self._end = await self._ends.end(self._place)
                if offset >= self._end:
                    return []
            try:
                found: list[Record] = await insisting(lambda: self._try(offset, most), self._address.wait_seconds)
                return found
            except OffsetOutOfRangeError:
                raise OffsetLost(
                    f"{self._place.topic}[{self._place.partition}] has no offset {offset} any more", offset=offset
                ) from None

    async def _try(self, offset: int, most: int) -> list[Record]:
        try:
            return await self._fetch(offset, most)
        except (KafkaError, OSError, asyncio.CancelledError):
            await self.close()  # a connection of its own for the next try
            raise

    async def _fetch(self, offset: int, most: int) -> list[Record]:
        if self._consumer is None:
            self._consumer = make_consumer(self._address, fetch_max_wait_ms=IDLE_FETCH_MS)
            await self._consumer.start()
            self._consumer.assign([self._place])
            self._position = -1
        consumer = self._consumer
        consumer.resume(self._place)
        if self._position != offset:
            consumer.seek(self._place, offset)
        found: list[Record] = []
        deadline = asyncio.get_running_loop().time() + READ_SECONDS
        while len(found) < most:
            fetched = await consumer.getmany(self._place, timeout_ms=500, max_records=most - len(found))
            found.extend(record_in(self._topic, message) for message in fetched.get(self._place, ()))
            self._position = await consumer.position(self._place)
            if self._position >= self._end:
                break
            if not fetched and asyncio.get_running_loop().time() > deadline:
                raise StorageError(f"the broker did not show {self._place.topic} from offset {offset} in {READ_SECONDS:g} s")
        consumer.pause(self._place)
        return found

    async def close(self) -> None:
        """Give the connection back; the next read opens another."""
        consumer, self._consumer, self._end = self._consumer, None, 0
        if consumer is not None:
            await consumer.stop()
