"""Consumer groups of a log on Kafka: who reads which partition, and how far behind."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from ..topics import LEADER_GROUP, TOPICS
from .address import KafkaAddress
from .aiokafka_api import (
    AIOKafkaAdminClient,
    AIOKafkaConsumer,
    ConsumerProtocolMemberAssignment,
    KafkaError,
    TopicPartition,
    for_code,
)
from .follower import stop_quietly
from .partition_reader import IDLE_FETCH_MS
from .preflight import NO_RIGHT, unreachable

logger = logging.getLogger(__name__)


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
        # The client asks for the topic's metadata only when it reads it; assigning is how it is told to.
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
