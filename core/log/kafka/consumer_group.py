"""Consumer groups on the broker: a member of a group, and the lag of every group of a log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ...errors import InvalidInput, LogClosed, LogError, StorageError
from ...loop_thread import LoopThread
from ..interface import Membership, Record
from ..topics import LEADER_GROUP, TOPICS
from .address import KafkaAddress
from .aiokafka_api import (
    AIOKafkaAdminClient,
    AIOKafkaConsumer,
    ConsumerProtocolMemberAssignment,
    KafkaError,
    RebalanceListener,
    StickyPartitionAssignor,
    TopicPartition,
    for_code,
)
from .end_offsets import Ends
from .partition_reader import IDLE_FETCH_MS, record_in, stop_quietly
from .preflight import NO_RIGHT, unreachable

logger = logging.getLogger(__name__)

SESSION_MS = 6000
"""A member that is silent for so long is out: a killed runner is noticed in 6 s (aiokafka's default: 11.5 s)."""
HEARTBEAT_MS = 1000
JOIN_SECONDS = 60.0
ASK_AGAIN_SECONDS = 0.2
FETCH_MS = 1000
"""How long the broker may wait for records. While it does, a partition whose records were taken is not asked for more."""
SURE_SECONDS = 2.0
"""A poll that waited for so long had the broker's answer for every partition: nothing is behind it then."""
NOWHERE = TopicPartition("", 0)


class KafkaMember(Membership):
    """See `Membership`. Methods may be called from any thread but the log's own; one poll at a time."""

    def __init__(
        self,
        loop: LoopThread,
        address: KafkaAddress,
        group: str,
        topics: Sequence[str],
        member_id: str,
        ends: Ends,
        forget: Callable[[KafkaMember], None],
    ) -> None:
        self.group = group
        self.member_id = member_id
        self.closed = False
        self._loop = loop
        self._ends = ends
        self._forget = forget
        self._names = {address.topic(name): name for name in topics}
        self._address = address
        self._paused = False
        self._dealing = False
        """The group is dealing its partitions anew: what the client brings now is brought again from where we go on."""
        self._positions: dict[TopicPartition, int] = {}
        self._assigned = asyncio.Event()
        self._resumed = asyncio.Event()
        self._consumer: Any = None

    async def start(self) -> None:
        """Join, and return when partitions are assigned (or there are fewer of them than members).

        Raises `StorageError` where the group does not answer; nothing is left of the attempt then.
        """
        consumer: Any = AIOKafkaConsumer(
            **self._address.client(),
            group_id=self._address.group(self.group),
            client_id=self.member_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            fetch_max_wait_ms=FETCH_MS,
            max_poll_interval_ms=300_000,
            partition_assignment_strategy=(_own_assignor(),),
        )
        self._consumer = consumer
        consumer.subscribe(list(self._names), listener=_Listener(self))
        try:
            await consumer.start()
            await asyncio.wait_for(self._assigned.wait(), JOIN_SECONDS)
        except (KafkaError, OSError, asyncio.TimeoutError) as error:
            await self.leave()
            if isinstance(error, NO_RIGHT):
                raise unreachable(self._address, error) from error
            raise StorageError(f"the group {self.group!r} does not answer: {type(error).__name__}: {error}") from error

    # On the loop

    async def assigned(self, places: Sequence[TopicPartition]) -> None:
        """The group dealt its partitions anew: what is ours still goes on where it was, the rest where it was committed."""
        self._dealing = True
        try:
            kept = {place: self._positions[place] for place in places if place in self._positions}
            for place in places:
                if place not in kept:
                    kept[place] = await self._committed(place)
            # The client reads new partitions before it tells us of them; what it brought meanwhile was not taken.
            self._positions = kept
            for place, position in kept.items():
                self._consumer.seek(place, position)
        finally:
            self._dealing = False
        if self._paused and places:
            self._consumer.pause(*places)
        self._assigned.set()

    async def _committed(self, place: TopicPartition) -> int:
        """Where the group goes on in a partition, asked until it is answered: nobody else would ask again."""
        while True:
            try:
                committed = await self._consumer.committed(place)
                if committed is not None:
                    return int(committed)
                return await self._ends.first(place)  # the client itself waits for a fetch that is under way
            except (KafkaError, OSError, StorageError):
                if self.closed or place not in self._consumer.assignment():
                    raise
                await asyncio.sleep(ASK_AGAIN_SECONDS)

    def _place(self, topic: str, partition: int) -> TopicPartition:
        return TopicPartition(self._address.topic(topic), partition)

    async def _poll(self, most: int, timeout_seconds: float) -> list[Record]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while True:
            if self.closed:
                raise LogClosed("this member has left its group")
            left = deadline - loop.time()
            if self._paused:
                # The client leaves its group when it is asked for nothing for five minutes; of nowhere there is nothing.
                await self._consumer.getmany(NOWHERE, timeout_ms=0)
                if left <= 0:
                    return []
                self._resumed.clear()
                try:
                    await asyncio.wait_for(self._resumed.wait(), left)
                except asyncio.TimeoutError:
                    return []
                continue
            found = await self._fetch(most, left)
            if found or (left <= 0 and (timeout_seconds >= SURE_SECONDS or not await self._behind())):
                return found

    async def _fetch(self, most: int, left_seconds: float) -> list[Record]:
        fetched = await self._consumer.getmany(timeout_ms=int(1000 * min(max(left_seconds, 0.02), 1.0)), max_records=most)
        found: list[Record] = []
        if self._dealing:
            return found
        for place, messages in fetched.items():
            if place in self._positions and messages:
                self._positions[place] = messages[-1].offset + 1
                found.extend(record_in(self._names[place.topic], message) for message in messages)
        return found

    async def _behind(self) -> bool:
        """Whether something lies behind our positions that the client has not fetched yet."""
        if not self._positions:
            return False
        for place in list(self._positions):
            if await self._ends.end(place) > self._positions.get(place, 1 << 62):
                return True
        return False

    async def _commit(self, place: TopicPartition, offset: int) -> None:
        if self.closed or place not in self._positions:
            raise LogError(f"{place.topic}[{place.partition}] is not assigned to {self.member_id} (any more)")
        if not 0 <= offset <= self._positions[place]:
            raise InvalidInput(f"{place.topic}[{place.partition}] was polled up to {self._positions[place]}, not {offset}")
        await self._consumer.commit({place: offset})

    async def _set_paused(self, paused: bool) -> None:
        self._paused = paused
        places = list(self._consumer.assignment())
        if places:
            (self._consumer.pause if paused else self._consumer.resume)(*places)
        if not paused:
            self._resumed.set()

    async def leave(self) -> None:
        """Leave the group; who polls is woken."""
        self.closed = True
        self._resumed.set()
        self._assigned.set()
        self._positions = {}
        await stop_quietly(self._consumer)

    # From other threads

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[Record]:
        """See `Membership.poll`. Raises `InvalidInput` for less than one record, `LogClosed` after `close`."""
        if max_records < 1:
            raise InvalidInput(f"a poll asks for at least one record, not {max_records}")
        if self.closed:
            raise LogClosed("this member has left its group")
        try:
            return self._loop.call(self._poll(max_records, timeout_seconds))
        except (KafkaError, OSError) as error:
            if self.closed:
                raise LogClosed("this member has left its group") from None
            raise StorageError(f"the broker does not answer the group: {error}") from error

    def commit(self, topic: str, partition: int, offset: int) -> None:
        """See `Membership.commit`. Raises `InvalidInput` for an offset beyond what was polled."""
        if self.closed:
            raise LogError(f"{self.member_id} has left its group")
        try:
            self._loop.call(self._commit(self._place(topic, partition), offset), 30)
        except (KafkaError, OSError) as error:
            raise LogError(f"{topic}[{partition}] could not be committed: {error}") from error

    def assignment(self) -> frozenset[tuple[str, int]]:
        return frozenset((self._names[place.topic], place.partition) for place in self._positions)

    def pause(self) -> None:
        self._loop.call(self._set_paused(True), 10)

    def resume(self) -> None:
        self._loop.call(self._set_paused(False), 10)

    def close(self) -> None:
        if not self.closed:
            self._loop.call(self.leave(), 30)
        self._forget(self)


def _own_assignor() -> Any:
    """The assignor remembers in its class what its member had: members of one process must not take each other's for theirs."""

    class Assignor(StickyPartitionAssignor):
        pass

    return Assignor


class _Listener(RebalanceListener):
    def __init__(self, member: KafkaMember) -> None:
        self._member = member

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Nothing: running work is never touched by a rebalance, and offsets were committed long ago."""

    async def on_partitions_assigned(self, assigned: Any) -> None:
        await self._member.assigned(sorted(assigned))


class PartitionLag(msgspec.Struct, frozen=True):
    """One partition as a group sees it.

    `committed` is the offset that the group goes on from, None where it never committed: then it begins at the first
    record that is there. `lag`: records that it has still to take, 0 in the group that only chooses a leader. `member`: who
    has the partition now, or empty.
    """

    topic: str
    partition: int
    committed: int | None
    end: int
    lag: int
    member: str


class GroupLag(msgspec.Struct, frozen=True):
    """One group without its prefix. `state` is the broker's word: Stable, Empty, PreparingRebalance, ..."""

    group: str
    state: str
    members: int
    lag: int
    partitions: list[PartitionLag]


Place = tuple[str, int]


async def lags(address: KafkaAddress) -> list[GroupLag]:
    """The groups of this prefix that are dealt its topics. Raises `StorageError` where the broker does not let us ask."""
    admin: Any = AIOKafkaAdminClient(**address.client())
    # Asking for a topic's partitions makes it fetch, and the broker answers nothing else on that connection meanwhile.
    asker: Any = AIOKafkaConsumer(**address.client(), group_id=None, fetch_max_wait_ms=IDLE_FETCH_MS)
    names = {address.topic(name): name for name in TOPICS}
    begin = address.group("")
    try:
        await admin.start()
        await asker.start()
        found: list[GroupLag] = []
        groups = sorted(row[0] for row in await admin.list_consumer_groups() if row[0].startswith(begin))
        if not groups:
            await _may_see(admin, address)
        for group in groups:
            state, members, owners, topics = await _described(admin, group, names)
            committed = await _committed(admin, group, names)
            topics |= {topic for topic, _ in committed}
            if topics:
                places = await _lags_of(asker, sorted(topics), names, committed, owners)
                if group == address.group(LEADER_GROUP):
                    places = [msgspec.structs.replace(place, lag=0) for place in places]
                total = sum(place.lag for place in places)
                found.append(GroupLag(group[len(begin) :], state, members, total, places))
        return found
    except (KafkaError, OSError) as error:
        raise unreachable(address, error) from error
    finally:
        await stop_quietly(asker)
        await admin.close()


async def _may_see(admin: Any, address: KafkaAddress) -> None:
    """A broker lists only the groups that one may see; asked for one by its name, it says whether one may see it."""
    try:
        await _described(admin, address.group(LEADER_GROUP), {})
    except NO_RIGHT:
        raise
    except KafkaError as error:  # a broker on which nobody ever joined a group has no coordinator yet
        logger.debug("Whether groups may be seen is not known: %s", error)


async def _described(admin: Any, group: str, names: dict[str, str]) -> tuple[str, int, dict[Place, str], set[str]]:
    """(state, number of members, owner of each partition, topics that are assigned)."""
    owners: dict[Place, str] = {}
    topics: set[str] = set()
    state, count = "Unknown", 0
    for answer in await admin.describe_consumer_groups([group]):
        for row in answer.groups:
            if row[0]:
                raise for_code(row[0])(group)
            state, members = row[2] or "Unknown", row[5]
            count = len(members)
            for member in members:
                if not member[4]:
                    continue  # joining: nothing is assigned to it yet
                for topic, partitions in ConsumerProtocolMemberAssignment.decode(member[4]).assignment:
                    if topic in names:
                        topics.add(topic)
                        owners.update({(topic, partition): f"{member[1]}{member[2]}" for partition in partitions})
    return state, count, owners, topics


async def _committed(admin: Any, group: str, names: dict[str, str]) -> dict[Place, int]:
    offsets = await admin.list_consumer_group_offsets(group)
    return {
        (place.topic, place.partition): int(at.offset)
        for place, at in offsets.items()
        if place.topic in names and at.offset >= 0
    }


async def _lags_of(
    asker: Any, topics: list[str], names: dict[str, str], committed: dict[Place, int], owners: dict[Place, str]
) -> list[PartitionLag]:
    places: list[Any] = []
    for topic in topics:
        # The client asks for the topic's metadata only when it reads it; assigning makes it do so.
        parts = asker.partitions_for_topic(topic) or await _partitions(asker, topic)
        places += [TopicPartition(topic, part) for part in sorted(parts)]
    ends = await asker.end_offsets(places)
    firsts = await asker.beginning_offsets(places)
    made: list[PartitionLag] = []
    for place in places:
        key, end = (place.topic, place.partition), int(ends[place])
        at = committed.get(key)
        # A commit below what is still there: the records between were removed and will never be taken.
        start = int(firsts[place]) if at is None else max(at, int(firsts[place]))
        lag = max(end - start, 0)
        made.append(PartitionLag(names[place.topic], place.partition, at, end, lag, owners.get(key, "")))
    return made


async def _partitions(asker: Any, topic: str) -> set[int]:
    asker.assign([TopicPartition(topic, 0)])
    await asker.end_offsets([TopicPartition(topic, 0)])
    return asker.partitions_for_topic(topic) or {0}
