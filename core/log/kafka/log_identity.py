"""What a log on Kafka is: its id, its partition counts and its first events, kept in the topic `meta` and verified at opening.

Every record of `meta` names the log and adds what was not known before; the first record decides the id, so two nodes that
open a new log at the same moment agree. A log whose topics do not fit this record is not whole: a topic was deleted and made
again, compacted, pruned, or given more partitions. It is not opened for writing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ...errors import InvalidInput, LogCorrupt, StorageError
from ..interface import NewRecord
from ..topics import CONTROL, DEAD, SPANS, STORED, partition_of
from .address import KafkaAddress
from .aiokafka_api import AIOKafkaConsumer, TopicPartition
from .partition_reader import IDLE_FETCH_MS

logger = logging.getLogger(__name__)

META = "meta"
"""A topic beside those of the seam: the log's identity."""
FORMAT = 2
"""1, which was never released, held values in msgpack; its records of `meta` name no format."""
READ_SECONDS = 10.0
EMPTY_SECONDS = 2.0
"""How long a control partition that has events has to look empty before it counts as made again: an end offset may be stale."""
_SAMPLED = (CONTROL, SPANS, DEAD)
"""Topics whose records show by their keys how many partitions they were written for."""


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record of `meta`. `partitions`: topic -> count when the log was made. `first`: control partition -> digest."""

    log_id: str
    format: int = 1
    partitions: dict[str, int] = {}
    first: dict[str, str] = {}


@dataclass(frozen=True)
class Verified:
    """A log that was looked at. `partitions`: the counts it was made with, which count; `problems`: why it is not whole."""

    log_id: str
    partitions: dict[str, int]
    first: dict[str, str]
    problems: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def check(self, url: str) -> None:
        """Raises `LogCorrupt` with the remedy where the log is not whole."""
        if self.problems:
            raise LogCorrupt(
                f"the log at {url} is not whole: {'; '.join(self.problems)}. Nothing is written to it. Restore its topics from "
                "a copy made with `agl log copy`, or choose another prefix"
            )


def digest(key: bytes, value: bytes) -> str:
    """What `Identity.first` keeps of the first event of a control partition."""
    return hashlib.sha256(key + b"\0" + value).hexdigest()[:32]


def digest_of(record: NewRecord) -> str:
    """As `digest`, of a record on its way to offset 0."""
    return digest(record.key.encode(), record.value)


def identity_reader(address: KafkaAddress) -> Any:
    """A consumer for this module alone: while it waits for records, the broker answers nothing else on its connection."""
    return AIOKafkaConsumer(**address.client(), group_id=None, auto_offset_reset="earliest", fetch_max_wait_ms=IDLE_FETCH_MS)


async def read_identity(address: KafkaAddress, reader: Any) -> Identity | None:
    """What the records of `meta` say together; None before somebody has opened the log for the first time."""
    place = TopicPartition(address.topic(META), 0)
    end = (await reader.end_offsets([place]))[place]
    found = await _fetch(reader, {place: end}, everything=True) if end else {}
    return merged(message.value for message in found.get(place, ()))


def merged(values: Iterable[bytes | None]) -> Identity | None:
    """The identity of which `values` are the records, in order. Records of another log, which lost the race, are left out."""
    known: Identity | None = None
    for value in values:
        try:
            identity = msgspec.json.decode(value or b"", type=Identity)
        except msgspec.MsgspecError:
            continue
        if known is None:
            known = identity
        elif identity.log_id == known.log_id:
            known = Identity(
                known.log_id, known.format, {**identity.partitions, **known.partitions}, {**identity.first, **known.first}
            )
    return known


async def identify(address: KafkaAddress, reader: Any, producer: Any, present: Mapping[str, int]) -> Verified:
    """Verify the log, and write down what `meta` does not say yet. Raises `LogCorrupt` where the log is not whole.

    `present`: topic -> partitions on the broker.
    """
    known = await read_identity(address, reader)
    if known is None:
        await write_identity(address, producer, Identity(uuid.uuid4().hex[:16], FORMAT))
        known = await read_identity(address, reader)
        if known is None:
            raise StorageError(f"{address.topic(META)} does not show the record that says which log this is")
    verified = await verify(address, reader, known, present)
    verified.check(address.url)
    if verified.partitions != known.partitions or verified.first != known.first:
        await write_identity(address, producer, Identity(known.log_id, known.format, verified.partitions, verified.first))
    return verified


async def write_identity(address: KafkaAddress, producer: Any, identity: Identity) -> None:
    """Add a record to `meta`."""
    await producer.send_and_wait(address.topic(META), msgspec.json.encode(identity), key=b"log", partition=0)


async def verify(
    address: KafkaAddress, reader: Any, known: Identity, present: Mapping[str, int], *, adopt: bool = True
) -> Verified:
    """Compare the topics with what `meta` says of them. What it does not say is taken as it is found.

    `adopt`: partition counts that it does not say, as in logs of older releases, are checked by a sample of the records.
    """
    if known.format != FORMAT:
        remedy = "upgrade the package" if known.format > FORMAT else "choose another prefix for a new log"
        raise InvalidInput(f"the log at {address.url} has format {known.format}, this release reads {FORMAT}; {remedy}")
    problems: list[str] = []
    notices: list[str] = []
    counts: dict[str, int] = {}
    for topic in (topic for topic in present if topic != META):
        count = known.partitions.get(topic)
        if count is None:
            sampled = adopt and topic in _SAMPLED
            count = await _written_for(reader, address.topic(topic), present[topic]) if sampled else present[topic]
        if count is None:
            problems.append(
                f"{address.topic(topic)} has records in partitions where their keys do not belong: partitions were added to it"
            )
        counts[topic] = count or present[topic]
        await _compare(address, reader, topic, counts[topic], present[topic], problems, notices)
    places = {part: TopicPartition(address.topic(CONTROL), part) for part in range(min(counts[CONTROL], present[CONTROL]))}
    ends = await reader.end_offsets(list(places.values()))
    deadline = asyncio.get_running_loop().time() + EMPTY_SECONDS
    while any(ends[place] == 0 for part, place in places.items() if str(part) in known.first):
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.1)
        ends = await reader.end_offsets(list(places.values()))
    found = await _fetch(reader, {place: ends[place] for place in places.values() if ends[place]})
    first = dict(known.first)
    for part, place in places.items():
        problem, print_ = beginning(found.get(place, ()), ends[place], known.first.get(str(part)))
        if problem is not None:
            problems.append(f"{place.topic}[{part}] {problem}")
        elif print_ is not None:
            first[str(part)] = print_
    return Verified(known.log_id, counts, first, tuple(problems), tuple(notices))


def beginning(messages: Sequence[Any], end: int, expected: str | None) -> tuple[str | None, str | None]:
    """(what is wrong with the beginning of a control partition, the digest of its first event)."""
    if not end:
        if expected is None:
            return None, None
        return "is empty and had events: it was deleted and made again", None
    offset = 0
    for message in messages:
        if message.offset != offset:
            return f"has no record at offset {offset}: records were compacted away, removed, or written in a transaction", None
        offset += 1
    if not messages:
        return f"does not show its first record within {READ_SECONDS:g} s", None
    seen = digest(messages[0].key or b"", messages[0].value or b"")
    if expected is not None and seen != expected:
        return "begins with another event than this log did: it was deleted and made again", None
    return None, seen


async def _compare(
    address: KafkaAddress, reader: Any, topic: str, count: int, there: int, problems: list[str], notices: list[str]
) -> None:
    """Partitions that were added later are left alone, since keys were placed without them."""
    name = address.topic(topic)
    if there < count:
        problems.append(f"{name} has {there} partitions and was made with {count}: it was deleted and made again")
    elif there > count and topic in STORED:
        ends = await reader.end_offsets([TopicPartition(name, part) for part in range(count, there)])
        if any(ends.values()):
            problems.append(f"{name} was made with {count} partitions, and partitions that were added to it have records")
        else:
            notices.append(f"{name} has {there} partitions and was made with {count}; the others stay unused")


async def _written_for(reader: Any, name: str, there: int) -> int | None:
    """The partition count by which the records of a topic were placed, by a sample of each partition; None for no count."""
    places = [TopicPartition(name, part) for part in range(there)]
    ends = await reader.end_offsets(places)
    found = await _fetch(reader, {place: end for place, end in ends.items() if end})
    placed: set[tuple[int, str]] = set()
    for place, messages in found.items():
        placed.update((place.partition, (message.key or b"").decode("utf-8", "replace")) for message in messages)
    for count in range(there, 0, -1):
        if all(partition_of(key, count) == part for part, key in placed):
            return count
    return None


async def _fetch(reader: Any, ends: Mapping[Any, int], everything: bool = False) -> dict[Any, list[Any]]:
    """The first records of each place, or all of them; what is not shown within 10 s is not in it."""
    found: dict[Any, list[Any]] = {place: [] for place in ends}
    if not ends:
        return found
    reader.assign(list(ends))
    await reader.seek_to_beginning(*ends)
    deadline = asyncio.get_running_loop().time() + READ_SECONDS
    waiting = set(ends)
    while waiting and asyncio.get_running_loop().time() < deadline:
        for place, messages in (await reader.getmany(*waiting, timeout_ms=200)).items():
            found[place].extend(messages)
        for place in list(waiting):
            past = await asyncio.wait_for(reader.position(place), READ_SECONDS) >= ends[place]
            if past or (found[place] and not everything):
                waiting.discard(place)
                reader.pause(place)
    return found
