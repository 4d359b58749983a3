"""The topics on the broker: how each is set up, made once, and checked at every opening."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..errors import InvalidInput, StorageError
from ..topics import BLOBS, CONTROL, DEAD, FACTS, LIVENESS, SNAPSHOTS, SPANS, TASKS
from .access import enter, unreachable
from .address import KafkaAddress
from .client import (
    AIOKafkaAdminClient,
    AIOKafkaConsumer,
    ConfigResource,
    ConfigResourceType,
    KafkaError,
    NewTopic,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    TopicPartition,
    for_code,
)
from .reading import IDLE_FETCH_MS

META = "meta"
"""A topic beside those of the seam: one record, the log's identity."""

_FOREVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
_WEEKS = {"cleanup.policy": "delete", "retention.ms": str(30 * 86_400_000)}
_NEWEST = {"cleanup.policy": "compact"}
# Each life of a worker and of a node has keys of its own: compaction alone would keep them for ever.
_NEWEST_OF_A_WEEK = {"cleanup.policy": "compact,delete", "retention.ms": str(7 * 86_400_000)}
# A writer's clock is informative: one that runs ahead must not make the broker refuse its events.
_ANY_CLOCK = {"message.timestamp.after.max.ms": str((1 << 63) - 1)}
SHOWN_SECONDS = 30.0
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
    META: Setup(1, {**_NEWEST}),
}


class Identity(msgspec.Struct, frozen=True):
    """What the `meta` topic says of a log."""

    log_id: str
    format: int = 1


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


async def create(address: KafkaAddress, counts: dict[str, int] | None = None, replication: int | None = None) -> list[str]:
    """Make the topics that are missing; return the names of those that were made.

    Idempotent: topics that are there are checked, not changed. `replication`: copies of each partition; None: three, or
    as many as there are brokers. Raises `InvalidInput` where a topic that is there cannot carry a log, else `StorageError`.
    """
    await enter(address)
    admin = AIOKafkaAdminClient(**address.client())
    try:
        await admin.start()
        there = set(await admin.list_topics())
        chosen = partitions_of(counts)
        copies = replication if replication is not None else min(3, len((await admin.describe_cluster())["brokers"]))
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
        await _shown(admin, address)
        await check(admin, address)
        return made
    except (KafkaError, OSError) as error:
        raise unreachable(address, error) from error
    finally:
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
    """Topic of the broker -> partitions, of this log's topics that are there. Raises the broker's word for a missing right."""
    described = await admin.describe_topics([address.topic(name) for name in SETUPS])
    for one in described:
        if for_code(one["error_code"]) is TopicAuthorizationFailedError:
            raise TopicAuthorizationFailedError(one["topic"])
    return {one["topic"]: len(one["partitions"]) for one in described if not one["error_code"] and one["partitions"]}


async def _shown(admin: Any, address: KafkaAddress) -> None:
    """Wait until what was made is shown: a broker answers a creation a moment before it knows of it itself."""
    deadline = asyncio.get_running_loop().time() + SHOWN_SECONDS
    while len(await _describe(admin, address)) < len(SETUPS):
        if asyncio.get_running_loop().time() > deadline:
            raise StorageError(f"the topics of {address.url} were made and are not shown after {SHOWN_SECONDS:g} s")
        await asyncio.sleep(0.05)


async def survey(address: KafkaAddress) -> dict[str, int]:
    """Topic -> partitions of the log that is there. Raises `InvalidInput` where a topic is missing or cannot carry a log."""
    admin = AIOKafkaAdminClient(**address.client())
    try:
        await admin.start()
        found = await _describe(admin, address)
        for name in SETUPS:
            if address.topic(name) not in found:
                raise InvalidInput(
                    f"there is no log at {address.url}: topic {address.topic(name)} is missing; "
                    f"`agl kafka init --log '{address.url}'` makes it"
                )
        await check(admin, address)
        return {name: found[address.topic(name)] for name in SETUPS}
    finally:
        await admin.close()


async def check(admin: Any, address: KafkaAddress) -> None:
    """Refuse a control topic that loses records or has holes. Raises `InvalidInput` with the remedy."""
    name = address.topic(CONTROL)
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    settings: dict[str, str] = {}
    for answer in answers:
        for resource in answer.resources:
            if resource[0]:  # settings that may not be seen are not settings that are right
                raise for_code(resource[0])(f"the settings of {name} cannot be read")
            settings.update({entry[0]: entry[1] for entry in resource[4]})
    policy, retention = settings.get("cleanup.policy", "delete"), settings.get("retention.ms", "-1")
    if "compact" in policy:
        raise InvalidInput(
            f"topic {name} is compacted: it loses events, and no log can be kept in it. Set cleanup.policy=delete, or choose "
            "another prefix"
        )
    if retention != "-1" or settings.get("retention.bytes", "-1") != "-1":
        raise InvalidInput(
            f"topic {name} forgets old events (retention.ms={retention}); set retention.ms=-1 and retention.bytes=-1"
        )


def identity_reader(address: KafkaAddress) -> Any:
    """The consumer for `identify` and `find_identity`. Under TLS its end waits for the fetch that is under way: a short one."""
    return AIOKafkaConsumer(**address.client(), group_id=None, auto_offset_reset="earliest", fetch_max_wait_ms=IDLE_FETCH_MS)


async def identify(address: KafkaAddress, consumer: Any, producer: Any) -> str:
    """The log's id; the first record of the `meta` topic that says one counts, so that two who begin agree.

    `consumer` is only for this: while it waits for records, the broker answers nothing else on its connection.
    """
    found = await find_identity(address, consumer)
    if found is None:
        value = msgspec.json.encode(Identity(uuid.uuid4().hex[:16]))
        await producer.send_and_wait(address.topic(META), value, key=b"log", partition=0)
        found = await find_identity(address, consumer)
    if found is None:
        raise StorageError(f"{address.topic(META)} does not show the record that says who the log is")
    return found.log_id


async def find_identity(address: KafkaAddress, consumer: Any) -> Identity | None:
    """What the `meta` topic says of the log; None before somebody has opened it for the first time."""
    place = TopicPartition(address.topic(META), 0)
    end = (await consumer.end_offsets([place]))[place]
    if end == 0:
        return None
    consumer.assign([place])
    await consumer.seek_to_beginning(place)
    deadline = asyncio.get_running_loop().time() + 10
    while await consumer.position(place) < end and asyncio.get_running_loop().time() < deadline:
        for message in (await consumer.getmany(place, timeout_ms=200)).get(place, ()):
            try:
                return msgspec.json.decode(message.value, type=Identity)
            except msgspec.MsgspecError:
                continue
    return None
