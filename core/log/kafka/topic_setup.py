"""The topics on the broker: how each is set up, made once, and checked at every opening."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import InvalidInput, LogCorrupt, StorageError
from ..topics import BLOBS, CONTROL, DEAD, FACTS, LIVENESS, SNAPSHOTS, SPANS, TASKS, TOPICS
from .address import KafkaAddress
from .aiokafka_api import (
    AIOKafkaAdminClient,
    ConfigResource,
    ConfigResourceType,
    KafkaError,
    NewTopic,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    TopicPartition,
    UnknownTopicOrPartitionError,
    for_code,
)
from .end_offsets import Ends
from .log_identity import META, identity_reader, read_identity, verify
from .partition_reader import PartitionReader, stop_quietly
from .preflight import enter, unreachable

logger = logging.getLogger(__name__)

_FOREVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
_WEEKS = {"cleanup.policy": "delete", "retention.ms": str(30 * 86_400_000)}
_NEWEST = {"cleanup.policy": "compact"}
# Each life of a worker and of a node has keys of its own: compaction alone would keep them for ever.
_NEWEST_OF_A_WEEK = {"cleanup.policy": "compact,delete", "retention.ms": str(7 * 86_400_000)}
# A writer's clock is informative: one that runs ahead must not make the broker refuse its events.
_ANY_CLOCK = {"message.timestamp.after.max.ms": str((1 << 63) - 1)}
SHOWN_SECONDS = 30.0
HOLE_RECORDS = 2000
"""Records at each end of a control partition in which `make_topics` looks for holes; `agl log check` reads all of them."""
MAX_MESSAGE_BYTES = 8 << 20
MAX_BLOB_BYTES = 72 << 20


@dataclass(frozen=True)
class Setup:
    """Partitions of a new topic and its settings on the broker."""

    partitions: int
    config: dict[str, str] = field(default_factory=dict[str, str])


SETUPS: dict[str, Setup] = {
    # Gapless offsets: never compacted, never pruned, never transactional. The partitions are fixed for life.
    CONTROL: Setup(1, {**_FOREVER, "max.message.bytes": str(MAX_MESSAGE_BYTES)}),
    SPANS: Setup(8, {**_FOREVER, "max.message.bytes": str(MAX_MESSAGE_BYTES)}),
    LIVENESS: Setup(1, {**_NEWEST_OF_A_WEEK, "segment.ms": "600000", "max.message.bytes": str(MAX_MESSAGE_BYTES)}),
    BLOBS: Setup(4, {**_NEWEST, "max.message.bytes": str(MAX_BLOB_BYTES), "compression.type": "zstd"}),
    SNAPSHOTS: Setup(1, {**_NEWEST, "segment.bytes": str(64 << 20), "max.message.bytes": str(MAX_MESSAGE_BYTES)}),
    DEAD: Setup(1, {**_FOREVER, "max.message.bytes": str(MAX_MESSAGE_BYTES)}),
    TASKS: Setup(16, {**_WEEKS, "retention.ms": str(7 * 86_400_000)}),
    FACTS: Setup(8, {**_WEEKS}),
    META: Setup(1, {**_FOREVER}),
}


@dataclass(frozen=True)
class Survey:
    """What is on the broker of a log. `partitions`: topic -> count; `limits`: topic -> the largest batch it takes in bytes.

    `notices`: settings that should be mended, each with its remedy.
    """

    partitions: dict[str, int]
    limits: dict[str, int]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class TopicReport:
    """One topic after `make_topics`. `asked`: the partitions that the caller asked for; `made`: it was not there before."""

    topic: str
    name: str
    partitions: int
    made: bool
    asked: int | None

    @property
    def differs(self) -> bool:
        """Another number of partitions was asked for than the topic has."""
        return self.asked is not None and self.asked != self.partitions


def partitions_of(counts: dict[str, int] | None) -> dict[str, int]:
    """Topic -> partitions for a new log. Raises `InvalidInput` for unknown topics and counts below one."""
    chosen = {name: setup.partitions for name, setup in SETUPS.items()}
    for name, count in (counts or {}).items():
        if name not in chosen or name == META:
            raise InvalidInput(f"there is no topic {name!r} to give partitions to; topics are {', '.join(SETUPS)}")
        if not 1 <= count <= 1024:
            raise InvalidInput(f"{name} cannot have {count} partitions; it takes 1 to 1024")
        chosen[name] = count
    return chosen


async def make_topics(
    address: KafkaAddress, counts: Mapping[str, int] | None = None, replication: int | None = None
) -> tuple[list[TopicReport], tuple[str, ...]]:
    """Make the topics of a log that are missing, check the others, and return (topics, notices as of `KafkaLog`).

    As `create`; also raises `InvalidInput` for a control topic whose offsets have holes, as transactions leave them.
    """
    made = await create(address, dict(counts or {}), replication)
    reader = identity_reader(address)
    try:
        found = await survey(address)
        await reader.start()
        known = await read_identity(address, reader)
        verified = None if known is None else await verify(address, reader, known, found.partitions, adopt=False)
        partitions = {**found.partitions, **(verified.partitions if verified else {})}
        await _refuse_holes(address, partitions[CONTROL])
    except (KafkaError, OSError) as error:
        raise unreachable(address, error) from error
    finally:
        await stop_quietly(reader)
    rows = [
        TopicReport(topic, address.topic(topic), partitions[topic], address.topic(topic) in made, (counts or {}).get(topic))
        for topic in TOPICS
    ]
    return rows, (*found.notices, *(verified.notices if verified else ()))


async def _refuse_holes(address: KafkaAddress, partitions: int) -> None:
    ends = Ends(address)
    try:
        await ends.start()
        for place in (TopicPartition(address.topic(CONTROL), partition) for partition in range(partitions)):
            first, end = await ends.first(place), await ends.end(place)
            reader = PartitionReader(address, CONTROL, place, ends)
            for low, high in ((first, min(end, first + HOLE_RECORDS)), (max(first, end - HOLE_RECORDS), end)):
                hole = 0 if first > 0 else await _first_hole(reader, low, high)
                if hole is not None:
                    raise InvalidInput(
                        f"topic {place.topic} has no record at offset {hole} of partition {place.partition}: a transaction was "
                        "written to it, or records were removed, and no log can be kept in it. Choose another prefix"
                    )
            await reader.close()
    finally:
        await stop_quietly(ends)


async def _first_hole(reader: PartitionReader, offset: int, end: int) -> int | None:
    while offset < end:
        records = await reader.read(offset, end - offset)
        hole = next((at for at, record in enumerate(records, offset) if record.offset != at), None)
        if hole is not None or not records:
            return hole if hole is not None else offset
        offset = records[-1].offset + 1
    return None


async def create(address: KafkaAddress, counts: dict[str, int] | None = None, replication: int | None = None) -> list[str]:
    """Make the topics that are missing; return the names of those that were made.

    Idempotent: topics that are there are checked, and their settings stay, but for a `meta` that is compacted, as older
    releases made it. A topic of a log that lost it gets the partitions that it had. `replication`: copies of each partition;
    None: three, or as many as there are brokers. Raises `InvalidInput` where a topic that is there cannot carry a log,
    `LogCorrupt` where the log is not whole, else `StorageError`.
    """
    await enter(address)
    admin = AIOKafkaAdminClient(**address.client())
    reader = identity_reader(address)
    try:
        await admin.start()
        await reader.start()
        there = set(await admin.list_topics())
        known = await read_identity(address, reader) if address.topic(META) in there else None
        if known is not None and known.first and address.topic(CONTROL) not in there:
            raise LogCorrupt(
                f"topic {address.topic(CONTROL)} is gone, and the log at {address.url} had events in it: a new one would be "
                "another log. Restore it from a copy made with `agl log copy`, or choose another prefix"
            )
        chosen = {**partitions_of(counts), **(known.partitions if known is not None else {})}
        brokers = len((await admin.describe_cluster())["brokers"])
        copies = replication if replication is not None else min(3, brokers)
        missing = [
            NewTopic(
                name=address.topic(name),
                num_partitions=chosen[name],
                replication_factor=copies,
                topic_configs={**_ANY_CLOCK, **setup.config},
            )
            for name, setup in SETUPS.items()
            if address.topic(name) not in there
        ]
        made = _made(await admin.create_topics(missing)) if missing else []
        present, settings = await _shown(admin, address, brokers)
        _refuse_settings(address, settings)
        if _compacted(settings[META]):
            await _never_compact(admin, address, settings[META])
        if known is not None:
            (await verify(address, reader, known, present)).check(address.url)
        return made
    except (KafkaError, OSError) as error:
        raise unreachable(address, error) from error
    finally:
        await stop_quietly(reader)
        await admin.close()


def _made(answer: Any) -> list[str]:
    """The topics that were made; one that somebody else made a moment earlier is as good. Raises the broker's refusals."""
    made: list[str] = []
    for name, code, *more in answer.topic_errors:
        kind: Any = for_code(code) if code else None
        if kind is None:
            made.append(name)
        elif kind is not TopicAlreadyExistsError:
            raise kind(f"{name}: {more[0] if more and more[0] else kind.__name__}")
    return made


async def _describe(admin: Any, address: KafkaAddress) -> dict[str, int]:
    """Topic -> partitions, of this log's topics that are there. Raises the broker's word for a missing right."""
    names = {address.topic(name): name for name in SETUPS}
    described = await admin.describe_topics(list(names))
    for one in described:
        if for_code(one["error_code"]) is TopicAuthorizationFailedError:
            raise TopicAuthorizationFailedError(one["topic"])
    return {names[one["topic"]]: len(one["partitions"]) for one in described if not one["error_code"] and one["partitions"]}


async def _shown(admin: Any, address: KafkaAddress, brokers: int) -> tuple[dict[str, int], dict[str, Settings]]:
    """Partitions and settings of what was made, once the brokers show it: one answers a creation before all know of it.

    Which broker answers is the client's choice, so as many answers in a row as there are brokers have to be complete.
    """
    deadline = asyncio.get_running_loop().time() + SHOWN_SECONDS
    complete = 0
    while True:
        try:
            found, settings = await _describe(admin, address), await _settings(admin, address)
            complete = complete + 1 if len(found) == len(SETUPS) else 0
            if complete == brokers:
                return found, settings
        except UnknownTopicOrPartitionError as error:
            complete = 0
            logger.debug("A broker does not show the topics of %s yet: %s", address.url, error)
        if asyncio.get_running_loop().time() > deadline:
            raise StorageError(f"the topics of {address.url} were made and are not shown after {SHOWN_SECONDS:g} s")
        if not complete:
            await asyncio.sleep(0.05)


async def survey(address: KafkaAddress) -> Survey:
    """The topics of the log that is there. Raises `InvalidInput` where one is missing or cannot carry a log."""
    admin = AIOKafkaAdminClient(**address.client())
    try:
        await admin.start()
        found = await _describe(admin, address)
        for name in SETUPS:
            if name not in found:
                raise InvalidInput(
                    f"there is no log at {address.url}: topic {address.topic(name)} is missing; "
                    f"`agl kafka init --log '{address.url}'` makes it"
                )
        settings = await _settings(admin, address)
    finally:
        await admin.close()
    _refuse_settings(address, settings)
    limits = {name: int(rows["max.message.bytes"][0]) for name, rows in settings.items() if "max.message.bytes" in rows}
    return Survey(found, limits, tuple(_notices(address, settings, limits)))


Settings = Mapping[str, tuple[str, int]]
"""Name of a setting of a topic -> (value, where it comes from)."""
_OF_THE_TOPIC = 1
"""Kafka's word for a setting that was made for this topic, and is not the broker's."""


async def _settings(admin: Any, address: KafkaAddress) -> dict[str, Settings]:
    """The settings of each topic. Raises the broker's word for a missing right."""
    names = {address.topic(name): name for name in SETUPS}
    found: dict[str, Settings] = {}
    for answer in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names]):
        for code, _, _, name, entries in answer.resources:
            if code:  # settings that may not be seen are not settings that are right
                raise for_code(code)(f"the settings of {name} cannot be read")
            found[names[name]] = {entry[0]: (entry[1] or "", entry[3]) for entry in entries}
    return found


def _refuse_settings(address: KafkaAddress, settings: Mapping[str, Settings]) -> None:
    """Refuse a control topic that loses records. Raises `InvalidInput` with the remedy."""
    name, rows = address.topic(CONTROL), settings[CONTROL]
    if _compacted(rows):
        raise InvalidInput(
            f"topic {name} is compacted: it loses events, and no log can be kept in it. Choose another prefix. If it was "
            "compacted by mistake a moment ago, set cleanup.policy=delete and try again: what is lost is found at opening"
        )
    retention = rows.get("retention.ms", ("-1", 0))[0]
    if retention != "-1" or rows.get("retention.bytes", ("-1", 0))[0] != "-1":
        raise InvalidInput(
            f"topic {name} forgets old events (retention.ms={retention}); set retention.ms=-1 and retention.bytes=-1"
        )


def _notices(address: KafkaAddress, settings: Mapping[str, Settings], limits: Mapping[str, int]) -> Iterator[str]:
    """What does not keep a log from working, and should be set otherwise."""
    if _compacted(settings[META]):
        yield (
            f"topic {address.topic(META)} is compacted, which may take away which log this is; "
            f"`agl kafka init --log '{address.url}'` sets cleanup.policy=delete"
        )
    for name, setup in SETUPS.items():
        wanted = int(setup.config.get("max.message.bytes", "0"))
        if limits.get(name, wanted) < wanted:
            yield (
                f"topic {address.topic(name)} takes batches of {limits[name]:,} bytes at most, and what is larger is refused; "
                f"set max.message.bytes={wanted}"
            )


async def _never_compact(admin: Any, address: KafkaAddress, rows: Settings) -> None:
    """Keep all of `meta`. The request replaces all settings of the topic, so those that it has are sent again."""
    name = address.topic(META)
    kept = {key: value for key, (value, source) in rows.items() if source == _OF_THE_TOPIC}
    for answer in await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {**kept, **_FOREVER})]):
        for code, message, *_ in answer.resources:
            if code:
                raise for_code(code)(message or f"the settings of {name} cannot be changed")
    deadline = asyncio.get_running_loop().time() + SHOWN_SECONDS
    while _compacted((await _settings(admin, address))[META]) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)  # a broker answers a change a moment before it shows it
    logger.warning("Topic %s was compacted; it is kept whole from now on.", name)


def _compacted(rows: Settings) -> bool:
    return "compact" in rows.get("cleanup.policy", ("delete", 0))[0]
