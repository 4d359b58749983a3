"""Finding the records of a key in a topic that keeps all of them: their offsets are remembered, the records stay there.

Kafka finds records by offset only. Each part of a partition is read once, when a question needs it, and the offset of every
record that passes is noted under its key; a later question about any of these keys reads those records alone. The caller
says where the records of a key can lie (`KeyRange`), so that a question about one rollout does not read a whole partition.
What this process appends is noted as it is acknowledged and need not be read at all.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ...errors import OffsetLost, StorageError
from ..interface import KeyRange, NewRecord, Record
from .address import KafkaAddress
from .aiokafka_api import KafkaError, OffsetOutOfRangeError, TopicPartition
from .end_offsets import Ends
from .partition_reader import IDLE_FETCH_MS, READ_SECONDS, insisting, make_consumer, record_in, stop_quietly

logger = logging.getLogger(__name__)

CLOCK_MARGIN_US = 15 * 60 * 1_000_000
"""By how much the clocks of writers may differ: so much earlier and later than a key's times is looked for it."""
NEAR_RECORDS = 8192
"""A longer piece is read by a client of its own, so that spans being added do not wait for it."""
NEAR_BYTES, FAR_BYTES = 1 << 20, 8 << 20
SCAN_RECORDS = 2048
STALL_SECONDS = 1.5
"""A broker that shows nothing for so long may lead the partition no longer: the client asks who does."""
APART = 512
"""Records of a key with more offsets between them are read in two pieces."""
RECENT_BYTES = 8 << 20
"""Records of a partition that are kept because somebody just wrote or read them."""
MOST_OFFSETS = 2_000_000
"""Offsets of a partition that are remembered; beyond that all are forgotten and read again where they are needed."""

Piece = tuple[int, int]
"""Offsets from the first one up to and without the second one."""


class OffsetIndex:
    """Which offsets of a partition were seen, and which of them belong to each key."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []
        self._offsets: dict[str, array[int]] = {}
        self.count = 0

    def gaps(self, first: int, end: int) -> list[Piece]:
        """What of `first` to `end` was not seen yet."""
        found: list[Piece] = []
        at = bisect_right(self._ends, first)
        while first < end:
            if at == len(self._firsts) or self._firsts[at] >= end:
                found.append((first, end))
                break
            if self._firsts[at] > first:
                found.append((first, self._firsts[at]))
            first = self._ends[at]
            at += 1
        return found

    def cover(self, first: int, end: int) -> None:
        """Note that everything from `first` to `end` was seen."""
        if first >= end:
            return
        low, high = bisect_left(self._ends, first), bisect_right(self._firsts, end)
        if low < high:  # it touches pieces that are there
            first, end = min(first, self._firsts[low]), max(end, self._ends[high - 1])
        self._firsts[low:high] = [first]
        self._ends[low:high] = [end]

    @property
    def end(self) -> int:
        """Behind the last offset that was seen."""
        return self._ends[-1] if self._ends else 0

    def add(self, key: str, offset: int) -> None:
        """Note that the record at `offset` has this key. Repeating it is harmless."""
        offsets = self._offsets.get(key)
        if offsets is None:
            offsets = self._offsets[key] = array("q")
        if not offsets or offsets[-1] < offset:
            offsets.append(offset)
        elif offsets[bisect_left(offsets, offset)] != offset:
            insort(offsets, offset)
        else:
            return
        self.count += 1

    def offsets(self, key: str, after: int = -1) -> list[int]:
        """The offsets > `after` that were noted for a key, in order."""
        offsets = self._offsets.get(key)
        return [] if offsets is None else list(offsets[bisect_right(offsets, after) :])


class _PieceReader:
    """A client that reads pieces of one partition, one at a time; connected at its first use."""

    def __init__(self, address: KafkaAddress, place: TopicPartition, fetch_bytes: int) -> None:
        self._address = address
        self._place = place
        self._fetch_bytes = fetch_bytes
        self._consumer: Any = None
        self._position = -1
        self.lock = asyncio.Lock()

    async def read(self, first: int, end: int, take: Callable[[Sequence[Any], int], None]) -> None:
        """Give `take` the messages of a piece, in order and with the offset up to which they reach. Under the lock."""
        position = first
        while position < end:
            messages, position = await insisting(lambda at=position: self._try(at, end), self._address.wait_seconds)
            take(messages, position)
        if self._consumer is not None:
            self._consumer.pause(self._place)

    async def _try(self, position: int, end: int) -> tuple[list[Any], int]:
        """The next messages from `position` on, and the offset up to which they reach."""
        try:
            consumer = await self._connected()
            consumer.resume(self._place)
            if self._position != position:
                consumer.seek(self._place, position)
            now = asyncio.get_running_loop().time
            deadline, asked = now() + READ_SECONDS, now()
            while now() < deadline:
                if now() - asked > STALL_SECONDS:
                    consumer.update_metadata()
                    asked = now()
                fetched = await consumer.getmany(self._place, timeout_ms=500, max_records=min(SCAN_RECORDS, end - position))
                self._position = int(await consumer.position(self._place))
                if self._position > position:
                    return [one for one in fetched.get(self._place, ()) if one.offset < end], min(self._position, end)
        except (KafkaError, OSError, asyncio.CancelledError):
            await self.close()  # a connection of its own for the next try
            raise
        raise StorageError(f"the broker did not show {self._place.topic} from offset {position} in {READ_SECONDS:g} s")

    async def _connected(self) -> Any:
        if self._consumer is None:
            consumer = make_consumer(
                self._address, fetch_max_wait_ms=IDLE_FETCH_MS, max_partition_fetch_bytes=self._fetch_bytes
            )
            try:
                await consumer.start()
            except BaseException:
                await stop_quietly(consumer)
                raise
            consumer.assign([self._place])
            self._consumer, self._position = consumer, -1
        return self._consumer

    async def offset_at(self, time_us: int) -> int | None:
        """The first offset whose time is not before `time_us`; None where there is none."""

        async def ask() -> Any:
            consumer = await self._connected()
            consumer.pause(self._place)
            return (await consumer.offsets_for_times({self._place: max(time_us // 1000, 0)}))[self._place]

        async with self.lock:
            found = await insisting(ask, self._address.wait_seconds)
        return None if found is None else int(found.offset)

    async def close(self) -> None:
        """Disconnect; the next use connects again."""
        consumer, self._consumer = self._consumer, None
        await stop_quietly(consumer)


class KeyedPartition:
    """`Log.read_key` for one partition of a topic that keeps all of its records; lives on the log's loop."""

    def __init__(self, address: KafkaAddress, topic: str, place: TopicPartition, ends: Ends) -> None:
        self._address = address
        self._topic = topic
        self._place = place
        self._ends = ends
        self._near = _PieceReader(address, place, NEAR_BYTES)
        self._far = _PieceReader(address, place, FAR_BYTES)
        self._appended = 0
        self._broker_clock = False
        """The broker gives records its own time, which says nothing of when a copied record was written."""
        self._forget()

    def _forget(self) -> None:
        self._index = OffsetIndex()
        self._recent: OrderedDict[int, Record] = OrderedDict()
        self._recent_bytes = 0
        self._start = 0
        """The first offset that is still there, as far as it was asked for."""

    def appended(self, base: int, records: Iterable[NewRecord]) -> None:
        """Note records of this process that the broker acknowledged at `base` and the offsets after it."""
        if base < self._appended:
            logger.warning("%s[%d] is another topic than it was.", self._place.topic, self._place.partition)
            self._forget()
        end = base
        for end, new in enumerate(records, base):
            self._index.add(new.key, end)
            self._keep(Record(self._topic, self._place.partition, end, new.key, new.value, new.timestamp_us, new.headers))
        self._appended = end + 1
        self._index.cover(base, end + 1)

    def _keep(self, record: Record) -> None:
        size = len(record.value) + 512
        before = self._recent.pop(record.offset, None)
        self._recent_bytes += size - (0 if before is None else len(before.value) + 512)
        self._recent[record.offset] = record
        while self._recent_bytes > RECENT_BYTES:
            _, dropped = self._recent.popitem(last=False)
            self._recent_bytes -= len(dropped.value) + 512

    async def read_key(self, key: str, after: int, most: int | None, within: KeyRange) -> list[Record]:
        """As `Log.read_key`."""
        try:
            return await self._read_key(key, after, most, within)
        except OffsetOutOfRangeError:
            self._forget()  # the topic was made anew, or its oldest records were deleted
            self._start = await self._ends.first(self._place)
        try:
            return await self._read_key(key, after, most, within)
        except OffsetOutOfRangeError:
            where = f"{self._place.topic}[{self._place.partition}]"
            raise OffsetLost(f"{where} loses records while it is read", offset=self._start) from None

    async def _read_key(self, key: str, after: int, most: int | None, within: KeyRange) -> list[Record]:
        if self._index.count > MOST_OFFSETS:
            self._forget()
        found: dict[int, Record] = {}
        first, end = await self._bounds(after, within)
        index = self._index  # another one may take its place meanwhile
        by_time = not self._broker_clock
        await self._see(index, first, end, key, found)
        nothing = not any(offset < end for offset in index.offsets(key, first - 1))
        if (by_time and self._broker_clock) or (within.until_us is not None and nothing):
            # Times say nothing here. Of a finished rollout something was to be expected: a copied log, or clocks that
            # differ by more than the margin.
            await self._see(index, max(after + 1, self._start), await self._end(), key, found)
        wanted = index.offsets(key, after)[:most]
        missing: list[int] = []
        for offset in wanted:
            record = found.get(offset) or self._recent.get(offset)
            if record is not None and record.key == key:
                found[offset] = record
            else:
                missing.append(offset)
        await self._fetch(missing, key, found)
        return [found[offset] for offset in wanted if offset in found]

    async def _end(self) -> int:
        end = await self._ends.end(self._place)
        if end < self._index.end:
            logger.warning("%s[%d] is another topic than it was.", self._place.topic, self._place.partition)
            self._forget()
        return end

    async def _bounds(self, after: int, within: KeyRange) -> Piece:
        """Where the records of a key are looked for."""
        least = max(after + 1, self._start)
        first = max(least, within.first)
        if within.end is not None and within.until_us is None:
            if first > within.end:
                first = least  # what the caller knew is of a topic that is no more
            return first, within.end
        end = await self._end()
        if first > end:
            first = least
        if not self._index.gaps(first, end) or self._broker_clock:
            return first, end
        if within.end is not None and within.until_us is not None and within.end < end:
            later = await self._near.offset_at(within.until_us + CLOCK_MARGIN_US)
            end = end if later is None else min(end, max(within.end, later))
        if within.since_us is not None and self._index.gaps(first, end):
            earliest = await self._near.offset_at(within.since_us - CLOCK_MARGIN_US)
            first = max(first, end if earliest is None else min(earliest, end))
        return first, end

    async def _see(self, index: OffsetIndex, first: int, end: int, key: str, found: dict[int, Record]) -> None:
        """Read what was not seen yet between two offsets."""
        gaps = index.gaps(first, end)
        if not gaps:
            return
        near = sum(high - low for low, high in gaps) <= NEAR_RECORDS
        reader = self._near if near else self._far
        async with reader.lock:
            for low, high in index.gaps(first, end):  # who was here before may have read some of it
                at = low

                def take(messages: Sequence[Any], reached: int) -> None:
                    nonlocal at
                    for message in messages:
                        name = message.key.decode("utf-8", "replace") if message.key is not None else ""
                        index.add(name, message.offset)
                        if message.timestamp_type == 1:
                            self._broker_clock = True
                        if name == key or near:
                            record = record_in(self._topic, message)
                            if name == key:
                                found[record.offset] = record
                            if near and index is self._index:
                                self._keep(record)
                    index.cover(at, reached)
                    at = reached

                await reader.read(low, high, take)
            if not near:
                await reader.close()

    async def _fetch(self, missing: list[int], key: str, found: dict[int, Record]) -> None:
        """Read the records at some offsets."""

        def take(messages: Sequence[Any], reached: int) -> None:
            for message in messages:
                if message.key == name:
                    found[message.offset] = record_in(self._topic, message)

        name = key.encode("utf-8", "backslashreplace")
        while missing:
            count = 1
            while count < len(missing) and missing[count] - missing[count - 1] <= APART:
                count += 1
            async with self._near.lock:
                await self._near.read(missing[0], missing[count - 1] + 1, take)
            missing = missing[count:]

    async def close(self) -> None:
        """Disconnect."""
        await self._near.close()
        await self._far.close()
