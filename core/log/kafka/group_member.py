"""Members of consumer groups on the broker: quick to be noticed when they die, and never resetting what they keep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import InvalidInput, LogClosed, LogError, StorageError
from ...loop_thread import LoopThread
from ..interface import Membership, Record
from .address import KafkaAddress
from .aiokafka_api import AIOKafkaConsumer, KafkaError, RebalanceListener, StickyPartitionAssignor, TopicPartition
from .end_offsets import Ends
from .follower import stop_quietly
from .preflight import NO_RIGHT, unreachable
from .record_codec import record_in

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
