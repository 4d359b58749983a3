"""Reading a partition by offset and following it: a consumer without a group, which never skips a missing offset.

`record_in` makes a record of a consumed message; `appender` has its reverse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...errors import LogError, OffsetLost, StorageError
from ..interface import Record
from ..local.follower import Follower
from .address import KafkaAddress
from .aiokafka_api import AIOKafkaConsumer, KafkaError, OffsetOutOfRangeError, TopicPartition
from .end_offsets import Ends

logger = logging.getLogger(__name__)

MICROS = "us"
"""Header with the writer's clock in microseconds: Kafka's own time stamp has milliseconds, from 1970 on."""


def record_in(topic: str, message: Any) -> Record:
    """A consumed message as a record. Foreign records, which any Kafka tool may write, are read as far as they go."""
    stamp = message.timestamp * 1000
    headers: list[tuple[str, str]] = []
    for name, raw in message.headers:
        text = raw.decode("utf-8", "replace") if raw is not None else ""
        if name == MICROS:
            stamp = _number(text, stamp)
        else:
            headers.append((name, text))
    key = message.key
    return Record(
        topic,
        message.partition,
        message.offset,
        key.decode("utf-8", "replace") if key is not None else "",
        message.value if message.value is not None else b"",
        stamp,
        tuple(headers),
    )


def _number(text: str, otherwise: int) -> int:
    try:
        return int(text)
    except ValueError:
        return otherwise


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


FOLLOW_RECORDS = 2048
POLL_MS = 1000
OWN_SECONDS = 0.01
"""How long a follower that got nothing but records of its own process waits for more of them, to leave these out too."""
STOP_SECONDS = 3.0


class PartitionFollower:
    """Follows one partition that keeps all its records; any hole in its offsets is an `OffsetLost`.

    `owns`: whether all records from an offset to another were written by this process (`Appender.owns`).
    """

    def __init__(
        self,
        address: KafkaAddress,
        topic: str,
        place: TopicPartition,
        follower: Follower,
        owns: Callable[[int, int, float], Awaitable[bool]],
        ended: Callable[[PartitionFollower], None],
    ) -> None:
        self.follower = follower
        self.place = place
        self._address = address
        self._topic = topic
        self._owns = owns
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
        if self.follower.known_below > 0 and await self._owns(first, last + 1, OWN_SECONDS):
            if await self._skip_own(consumer, last + 1):
                return
        await self._deliver(self.follower.deliver, [record_in(self._topic, message) for message in messages])

    async def _skip_own(self, consumer: Any, end: int) -> bool:
        """What was written here is applied when it is acknowledged: under load little of it is fetched at all.

        False where it was not: something of another writer came before it, so that its writer waits for it to come from here.
        """
        consumer.pause(self.place)
        await asyncio.sleep(OWN_SECONDS)
        applied = self.follower.known_below
        if applied >= end:
            self.follower.next = applied
            consumer.seek(self.place, applied)
        consumer.resume(self.place)
        return applied >= end

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
