"""KafkaLog: the log seam on a Kafka cluster. Everything that talks to the broker runs on one loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import AccessRefused, InvalidInput, LogClosed, LogCorrupt, LogError, PayloadTooLarge, StorageError
from ...loop_thread import LoopThread
from ..append_checks import PendingAppend, check_append, check_topic
from ..interface import (
    EVERYWHERE,
    Ack,
    Done,
    KeyRange,
    Log,
    Membership,
    NewRecord,
    OnProblem,
    OnRecords,
    Record,
    Subscription,
)
from ..local.follower import Follower
from ..local.group_commit import check_offset
from ..private_files import make_folder
from ..topics import BLOBS, CONTROL, FACTS, SPANS, TASKS, TOPICS, partition_of
from .address import KafkaAddress
from .aiokafka_api import KafkaError, TopicPartition
from .appender import BATCH_OVERHEAD_BYTES, Appender, Producer, answer
from .consumer_group import GroupLag, KafkaMember, lags
from .end_offsets import Ends, OnEnd
from .keyed_copy import KeyedCopy, KeyedTable, ScratchFolder
from .log_identity import (
    FORMAT,
    Identity,
    Verified,
    digest_of,
    identify,
    identity_reader,
    read_identity,
    verify,
    write_identity,
)
from .offset_index import KeyedPartition
from .partition_reader import PartitionFollower, PartitionReader, bounded, stop_quietly
from .preflight import enter, unreachable
from .topic_setup import MAX_BLOB_BYTES, MAX_MESSAGE_BYTES, Survey, survey

logger = logging.getLogger(__name__)

OPEN_SECONDS = 60.0
CLOSE_SECONDS = 30.0
ANSWER_SECONDS = 1.0
"""How long the broker may take to answer when the log is closed, before it counts as away."""
DRAIN_SECONDS = 10.0
FOLLOW_SECONDS = 5.0
GROUPS_SECONDS = 60.0
_RECORD_BYTES = 256
"""About what a published record has beside key and value."""


class KafkaLog(Log):
    """A log on Apache Kafka (4.x). The topics have to be there: `agl kafka init` makes them, or `create`.

    `address` is a `kafka://` URL or a parsed one. Raises `InvalidInput` for a wrong address, a prefix without topics and
    a control topic that cannot carry a log, `StorageError` where the broker does not let us in.
    """

    def __init__(self, address: str | KafkaAddress) -> None:
        self.address = address if isinstance(address, KafkaAddress) else KafkaAddress.parse(address)
        self.url = self.address.url
        self._pid = os.getpid()
        self._gate = threading.Lock()
        self._closed = False
        self._inbox: list[PendingAppend | Callable[[], PendingAppend | None]] = []
        self._asked: list[tuple[TopicPartition, OnEnd, int]] = []
        self._partitions: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        self._first: dict[str, str] = {}
        self.notices: tuple[str, ...] = ()
        """What of the topics' settings should be mended, as sentences."""
        self._appenders: dict[tuple[str, int], Appender] = {}
        self._readers: dict[tuple[str, int], PartitionReader] = {}
        self._copies: dict[str, KeyedCopy] = {}
        self._keyed: dict[tuple[str, int], KeyedPartition] = {}
        self._followers: set[PartitionFollower] = set()
        self._members: set[KafkaMember] = set()
        self._ends = Ends(self.address)
        self._producer = Producer(self.address, "zstd")
        # A client sends a server one request at a time, so blobs and what is derived have a client of their own: a command
        # does not wait for them. Compressing 64 MB takes the loop's thread a second; the topic's setting lets the broker do it.
        self._bulk_producer = Producer(self.address, None)
        self._loop = LoopThread(f"agl-kafka-{self.address.prefix}")
        self._scratch = None if self.address.state else ScratchFolder()
        self.state_folder = self._scratch.path if self._scratch is not None else Path(self.address.state or ".")
        make_folder(self.state_folder)
        for left in self.state_folder.glob(f"{self.address.prefix}.{SPANS}.db*"):
            left.unlink(missing_ok=True)  # the copy of all spans that earlier releases made
        try:
            self.log_id = self._loop.call(self._insist(), self.address.wait_seconds + OPEN_SECONDS)
            self._tell()
        except BaseException:
            self._abandon()
            raise

    def _tell(self) -> None:
        for notice in self.notices:
            logger.warning("%s", notice)

    def _abandon(self) -> None:
        self._closed = True
        self._loop.call(self._shut(), CLOSE_SECONDS)
        self._loop.stop()
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        if self._scratch is not None:
            self._scratch.remove()

    async def _insist(self) -> str:
        """Open, and wait for a broker that is away, saying so once. Raises `StorageError` when it does not come."""
        loop = asyncio.get_running_loop()
        deadline, reported = loop.time() + self.address.wait_seconds, False
        while True:
            try:
                return await self._open()
            except StorageError as error:
                if isinstance(error, AccessRefused) or loop.time() >= deadline:
                    raise
                if not reported:
                    logger.warning("waiting for Kafka at %s: %s", self.address.bootstrap, error)
                    reported = True
                await stop_quietly(self._ends)
                await asyncio.sleep(0.5)

    async def _open(self) -> str:
        await enter(self.address)
        self._ends = Ends(self.address)
        reader = identity_reader(self.address)
        try:
            await self._ends.start()
            found = await survey(self.address)
            await reader.start()
            verified = await self._identify(reader, found)
        except (KafkaError, OSError) as error:
            raise unreachable(self.address, error) from error
        finally:
            await stop_quietly(reader)
        self._partitions = {**found.partitions, **verified.partitions}
        self._limits = found.limits
        self._first = verified.first
        self.notices = (*found.notices, *verified.notices)
        return verified.log_id

    async def _identify(self, reader: Any, found: Survey) -> Verified:
        return await identify(self.address, reader, await self._producer.get(), found.partitions)

    # Writing

    def _appender(self, topic: str, partition: int) -> Appender:
        appender = self._appenders.get((topic, partition))
        if appender is None:
            appender = self._appenders[topic, partition] = Appender(
                self.address.topic(topic),
                partition,
                wait_seconds=self.address.wait_seconds,
                producer=self._bulk_producer if topic in (BLOBS, FACTS, TASKS) else self._producer,
                written=lambda offset, batch: self._written(topic, partition, offset, batch),
                batch_bytes=self.append_limit(topic),
            )
        return appender

    def _written(self, topic: str, partition: int, offset: int, batch: Sequence[PendingAppend]) -> None:
        """A batch has its offset; before the appends of it are answered."""
        count = sum(len(pending.records) for pending in batch)
        self._ends.acknowledged(self._place(topic, partition), offset + count)
        if topic == CONTROL and offset == 0 and str(partition) not in self._first:
            self._first[str(partition)] = digest_of(batch[0].records[0])
            self._noting = asyncio.get_running_loop().create_task(self._note_first())
        if topic in TOPICS and TOPICS[topic].by_key and not TOPICS[topic].compacted:
            records = [record for pending in batch for record in pending.records]
            self._keyed_partition(topic, partition).appended(offset, records)

    async def _note_first(self) -> None:
        """Write down with which event the log begins. The next opening does it where this fails."""
        try:
            identity = Identity(self.log_id, FORMAT, partitions=self._partitions, first=dict(self._first))
            await write_identity(self.address, await self._producer.get(), identity)
        except (KafkaError, OSError) as error:
            logger.warning("The beginning of the log was not noted in %s: %s", self.address.topic("meta"), error)

    def append_limit(self, topic: str) -> int:
        """See `Log.append_limit`: what the topic takes by its max.message.bytes."""
        return max(self._limits.get(topic, MAX_MESSAGE_BYTES) - BATCH_OVERHEAD_BYTES, BATCH_OVERHEAD_BYTES)

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        """See `Log.append`. Raises `InvalidInput` at once for what no log could store, `LogClosed` in a forked child."""
        self._check_place(topic, partition)
        self._check_process()
        self._put(self._fitting(check_append(topic, partition, records, done)), done)

    def append_staged(
        self, topic: str, partition: int, take: Callable[[], Sequence[NewRecord]], done: Done
    ) -> None:
        """See `Log.append_staged`: taken when the log's thread gets to it."""
        self._check_place(topic, partition)
        self._check_process()

        def pending() -> PendingAppend | None:
            if records := take():
                return _unchecked(topic, partition, records, done)
            answer(done, Ack(-1, 0))
            return None

        self._put(pending, done)

    def publish(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        """As `append`, for the topics that others derive: `tasks` and `facts`."""
        if topic not in (TASKS, FACTS) or not 0 <= partition < self._partitions[topic]:
            raise InvalidInput(f"{topic}[{partition}] is not a topic to publish to")
        if not records:
            raise InvalidInput("a publication needs at least one record")
        self._put(self._fitting(_unchecked(topic, partition, records, done)), done)

    def _fitting(self, pending: PendingAppend) -> PendingAppend:
        limit = MAX_BLOB_BYTES if pending.topic == BLOBS else MAX_MESSAGE_BYTES
        if pending.size > limit - BATCH_OVERHEAD_BYTES:
            raise PayloadTooLarge(limit=limit - BATCH_OVERHEAD_BYTES, size=pending.size)
        return pending

    def _put(self, pending: PendingAppend | Callable[[], PendingAppend | None], done: Done) -> None:
        with self._gate:
            if not self._closed:
                self._inbox.append(pending)
                if len(self._inbox) == 1:
                    self._loop.loop.call_soon_threadsafe(self._take_inbox)
                return
        # Rules of the seam: the answer comes from a thread of the log, also when the log is gone.
        threading.Thread(target=answer, args=(done, LogClosed("the log was closed")), daemon=True).start()

    def _take_inbox(self) -> None:
        with self._gate:
            taken, self._inbox = self._inbox, []
        for one in taken:
            pending = one if isinstance(one, PendingAppend) else one()
            if pending is not None:
                self._appender(pending.topic, pending.partition).put(pending)

    # Checks

    def partitions(self, topic: str) -> int:
        check_topic(topic)
        return self._partitions[topic]

    def partitions_published(self, topic: str) -> int:
        """The number of partitions of `tasks` or `facts`."""
        return self._partitions[topic]

    def _check_place(self, topic: str, partition: int) -> None:
        check_topic(topic)
        if not 0 <= partition < self._partitions[topic]:
            raise InvalidInput(f"there is no partition {partition}; {topic} has {self._partitions[topic]}")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise LogClosed("the log belongs to the process that opened it, not to its forked children")

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise LogClosed("the log was closed")

    def _place(self, topic: str, partition: int) -> TopicPartition:
        return TopicPartition(self.address.topic(topic), partition)

    # Reading

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        self._check_place(topic, partition)
        check_offset(offset)
        self._check_open()
        if TOPICS[topic].compacted:
            copy = self._loop.call(self._reached(topic, partition))
            return copy.table.select(partition, "offset >= ?", (offset,), max_records)
        records = self._loop.call(self._reader(topic, partition).read(offset, max_records))
        if topic == CONTROL and records and records[-1].offset - offset != len(records) - 1:
            hole = next(at for at, record in enumerate(records, offset) if record.offset != at)
            raise LogCorrupt(
                f"{self.address.topic(topic)}[{partition}] has no record at offset {hole}: records were compacted away, "
                "removed, or written in a transaction", position=hole, topic=topic, partition=partition,
            )  # fmt: skip
        return records

    def _reader(self, topic: str, partition: int) -> PartitionReader:
        with self._gate:
            reader = self._readers.get((topic, partition))
            if reader is None:
                place = self._place(topic, partition)
                reader = self._readers[topic, partition] = PartitionReader(self.address, topic, place, self._ends)
            return reader

    async def _copy(self, topic: str) -> KeyedCopy:
        copy = self._copies.get(topic)
        if copy is None:
            path = self.state_folder / f"{self.address.prefix}.{topic}.db"
            table = KeyedTable(path, topic, self._partitions[topic], self.log_id)
            copy = self._copies[topic] = KeyedCopy(self.address, topic, self._partitions[topic], self._ends, table)
        return copy

    async def _reached(self, topic: str, partition: int) -> KeyedCopy:
        copy = await self._copy(topic)
        await copy.reach(partition)
        return copy

    def read_key(
        self, topic: str, key: str, *, after: int = -1, max_records: int | None = None, within: KeyRange = EVERYWHERE
    ) -> Sequence[Record]:
        check_topic(topic)
        if not TOPICS[topic].by_key:
            raise InvalidInput(f"topic {topic!r} is not read by key")
        self._check_open()
        partition = partition_of(key, self._partitions[topic])
        if not TOPICS[topic].compacted:
            return self._loop.call(self._read_key(topic, partition, key, after, max_records, within))
        copy = self._loop.call(self._reached(topic, partition))
        return copy.table.select(partition, "key = ? AND offset > ?", (key, after), max_records)

    async def _read_key(
        self, topic: str, partition: int, key: str, after: int, most: int | None, within: KeyRange
    ) -> Sequence[Record]:
        return await self._keyed_partition(topic, partition).read_key(key, after, most, within)

    def _keyed_partition(self, topic: str, partition: int) -> KeyedPartition:
        keyed = self._keyed.get((topic, partition))
        if keyed is None:
            place = self._place(topic, partition)
            keyed = self._keyed[topic, partition] = KeyedPartition(self.address, topic, place, self._ends)
        return keyed

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        self._check_place(topic, partition)
        self._check_open()
        return self._loop.call(self._ends_of(topic, partition), self.address.wait_seconds)

    async def _ends_of(self, topic: str, partition: int) -> tuple[int, int]:
        place = self._place(topic, partition)
        if TOPICS[topic].compacted:
            copy = await self._copy(topic)
            end = await copy.reach(partition)
            first = copy.table.first(partition)
            return (end if first is None else first), end
        return await self._ends.first(place), await self._ends.end(place)

    def known_ends(self, topic: str) -> Mapping[int, int]:
        """See `Log.known_ends`."""
        check_topic(topic)
        return self._ends.known(self.address.topic(topic))

    def note_end(self, topic: str, partition: int, end: int) -> None:
        """See `Log.note_end`."""
        self._check_place(topic, partition)
        with contextlib.suppress(RuntimeError):  # the log was closed: nobody asks for its ends any more
            self._loop.loop.call_soon_threadsafe(self._ends.acknowledged, self._place(topic, partition), end)

    def ask_end(
        self, topic: str, partition: int, done: Callable[[int | LogError], None], at_least: int = 0
    ) -> None:
        """See `Log.ask_end`. Many that ask about a partition at once share one question to the broker."""
        self._check_place(topic, partition)
        with self._gate:
            self._check_open()  # under the gate: what is in the list when the log is closed is answered
            self._asked.append((self._place(topic, partition), done, at_least))
            if len(self._asked) == 1:
                self._loop.loop.call_soon_threadsafe(self._take_asked)

    def _take_asked(self) -> None:
        with self._gate:
            taken, self._asked = self._asked, []
        for place, done, at_least in taken:
            self._ends.ask(place, done, at_least)

    # Following, groups

    def follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        self._check_place(topic, partition)
        check_offset(offset)
        self._check_open()
        return self._loop.call(self._follow(topic, partition, offset, on_records, on_problem))

    async def _follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        if TOPICS[topic].compacted:
            copy = await self._copy(topic)
            await copy.reach(partition)
            return copy.feeds[partition].follow(offset, on_records, on_problem)
        follower = Follower(f"{topic}[{partition}]", offset, on_records, on_problem, lambda _: None)
        place = self._place(topic, partition)
        owns = self._appender(topic, partition).owns
        self._followers.add(PartitionFollower(self.address, topic, place, follower, owns, self._followers.discard))
        return follower

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Membership:
        """See `Log.join`; `tasks` and `facts` may be joined too. Raises `InvalidInput` for no topics and a taken id."""
        for topic in topics:
            if topic not in (TASKS, FACTS):
                check_topic(topic)
        self._check_open()
        if not topics or not group or not member_id:
            raise InvalidInput("a member of a group has a group, an id, and topics to read")
        with self._gate:
            if any(one.group == group and one.member_id == member_id for one in self._members):
                raise InvalidInput(f"group {group!r} has a member {member_id!r} already")
            names = tuple(dict.fromkeys(topics))
            member = KafkaMember(self._loop, self.address, group, names, member_id, self._ends, self._left)
            self._members.add(member)
        try:
            self._loop.call(member.start())
        except BaseException:
            self._left(member)
            raise
        return member

    def _left(self, member: KafkaMember) -> None:
        with self._gate:
            self._members.discard(member)

    # Closing

    def close(self) -> None:
        """See `Log.close`. Takes some seconds at most where the broker is away.

        Appends that are not acknowledged then are answered with `UnknownOutcome`.
        """
        with self._gate:
            if self._closed:
                return
            self._closed = True
        if os.getpid() != self._pid:
            return
        self._take_inbox_now()
        self._loop.call(self._drain(), CLOSE_SECONDS)
        self._loop.call(self._shut(), CLOSE_SECONDS)
        self._loop.stop()
        self._remove_temporary()

    def _take_inbox_now(self) -> None:
        async def take() -> None:
            self._take_inbox()
            self._take_asked()

        self._loop.call(take(), CLOSE_SECONDS)

    async def _drain(self) -> None:
        """Wait for what is under way, as long as the broker answers at all."""
        appenders = [appender for appender in self._appenders.values() if appender.task is not None]
        followers = list(self._followers)
        if not appenders and not followers:
            return
        try:
            await asyncio.wait_for(self._ends.end(self._place(CONTROL, 0)), ANSWER_SECONDS)
        except (LogError, asyncio.TimeoutError):
            await asyncio.gather(*(appender.abandon(0.0) for appender in appenders))
            return
        await asyncio.gather(*(appender.abandon(min(self.address.wait_seconds, DRAIN_SECONDS)) for appender in appenders))
        for follower in followers:
            try:
                end = await asyncio.wait_for(self._ends.end(follower.place), ANSWER_SECONDS)
            except (LogError, asyncio.TimeoutError):  # the broker is away: nothing more will come
                return
            await follower.reach(end, FOLLOW_SECONDS)

    async def _shut(self) -> None:
        loop = asyncio.get_running_loop()
        error = LogClosed("the log was closed")
        for follower in list(self._followers):
            await loop.run_in_executor(None, follower.follower.fail, error)
            follower.task.cancel()
        for copy in list(self._copies.values()):
            for feed in copy.feeds.values():
                await loop.run_in_executor(None, feed.fail, error)
        # Side by side: each of them may wait for a broker that is away.
        await asyncio.gather(
            *(bounded(copy.stop()) for copy in self._copies.values()),
            *(bounded(member.leave()) for member in self._members),
            *(bounded(reader.close()) for reader in [*self._readers.values(), *self._keyed.values()]),
            bounded(self._producer.stop()),
            bounded(self._bulk_producer.stop()),
            bounded(self._ends.stop()),
        )



def _unchecked(topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> PendingAppend:
    """An append of many records that this package made of what was checked before."""
    size = sum(len(one.value) + len(one.key) for one in records) + _RECORD_BYTES * len(records)
    return PendingAppend(topic, partition, tuple(records), (), size, done)


class ReadOnlyKafkaLog(KafkaLog):
    """A log on Kafka that this process only looks at, also while others write it.

    It shows every topic as the broker has it: older records of a key until they are compacted away, and `tasks` and
    `facts` as they were published. `log_id` is empty before the log was opened for writing once.
    """

    def __init__(self, address: str | KafkaAddress) -> None:
        self.findings: tuple[str, ...] = ()
        parsed = address if isinstance(address, KafkaAddress) else KafkaAddress.parse(address)
        # Copies that a running node keeps in `state` are its own.
        super().__init__(replace(parsed, state=None))

    async def _insist(self) -> str:
        """A reader learns at once that the broker is away."""
        return await self._open()

    async def _identify(self, reader: Any, found: Survey) -> Verified:
        """What is not whole is reported and shown as it is; `findings` has it for `agl log check`."""
        known = await read_identity(self.address, reader)
        if known is None:
            return Verified("", found.partitions, {})
        verified = await verify(self.address, reader, known, found.partitions, adopt=False)
        self.findings = verified.problems
        return verified

    def _tell(self) -> None:
        for finding in self.findings:
            logger.warning("The log is not whole: %s", finding)

    def partitions(self, topic: str) -> int:
        """See `Log.partitions`; `tasks` and `facts` too."""
        self._known(topic)
        return self._partitions[topic]

    def _known(self, topic: str) -> None:
        if topic not in TOPICS:
            raise InvalidInput(f"There is no topic {topic!r}; topics are {', '.join(TOPICS)}")

    def _check_place(self, topic: str, partition: int) -> None:
        self._known(topic)
        if not 0 <= partition < self._partitions[topic]:
            raise InvalidInput(f"there is no partition {partition}; {topic} has {self._partitions[topic]}")

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        self._check_place(topic, partition)
        check_offset(offset)
        self._check_open()
        return self._loop.call(self._reader(topic, partition).read(offset, max_records))

    async def _ends_of(self, topic: str, partition: int) -> tuple[int, int]:
        place = self._place(topic, partition)
        return await self._ends.first(place), await self._ends.end(place)

    def groups(self) -> list[GroupLag]:
        """Every consumer group that reads topics of this log, and how far behind it is; sorted by name."""
        self._check_open()
        return self._loop.call(lags(self.address), GROUPS_SECONDS)

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        """Raises `InvalidInput`, always: this log is only read."""
        raise InvalidInput(f"{self.url} is open for reading only")

    def append_staged(
        self, topic: str, partition: int, take: Callable[[], Sequence[NewRecord]], done: Done
    ) -> None:
        """Raises `InvalidInput`, always: this log is only read."""
        raise InvalidInput(f"{self.url} is open for reading only")

    def publish(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        """Raises `InvalidInput`, always: this log is only read."""
        raise InvalidInput(f"{self.url} is open for reading only")

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Membership:
        """Raises `InvalidInput`, always: who only looks moves nobody's partitions."""
        raise InvalidInput(f"{self.url} is open for reading only; members of a group open it for writing")
