"""Topics read for people: filters, the last records, and following, whether a topic is stored or derived."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.errors import InvalidInput
from ...core.events.codec import TYPES
from ...core.events.fact import TYPES as FACT_TYPES
from ...core.events.run_events import CLOSED, DECIDED, OPENED
from ...core.log.dead_letter import RECORD, ROLLOUT, SUBSCRIBER
from ...core.log.interface import Log, Record
from ...core.log.topics import BLOBS, CONTROL, DEAD, FACTS, LIVENESS, SNAPSHOTS, SPANS, TASKS, TOPICS
from ..facts.derived_topic import DerivedTopic
from .record_view import Decoder, View

POLL_SECONDS = 0.2
CHUNK = 2048
DERIVE_LIMIT = 200_000
"""Control records up to which `topic_summary` folds the log to count its derived topics; some seconds."""


def on_broker(log: Log) -> bool:
    """Whether the log is one on Kafka, which has topics that a file derives."""
    return log.url.startswith("kafka:")


@dataclass(frozen=True)
class Bound:
    """An end of a range: a position, or a time in Unix seconds."""

    position: int | None = None
    time: float | None = None


@dataclass(frozen=True)
class Filters:
    """What a record has to match. `since` is the first position or moment that is wanted, `until` the first that is not."""

    rollout: str | None = None
    attempt: str | None = None
    type: str | None = None
    since: Bound = Bound()
    until: Bound = Bound()

    def match(self, view: View) -> bool:
        """Say whether the record is wanted. Ids match by their beginning, a type wholly or by its part before a dot."""
        if self.rollout is not None and not _begins(view.rollout_ids, self.rollout):
            return False
        if self.attempt is not None and not _begins(view.attempt_ids, self.attempt):
            return False
        if self.type is not None and view.type != self.type and not view.type.startswith(self.type.rstrip(".") + "."):
            return False
        if self.since.position is not None and view.position < self.since.position:
            return False
        if self.until.position is not None and view.position >= self.until.position:
            return False
        if self.since.time is not None and (view.time is None or view.time < self.since.time):
            return False
        return self.until.time is None or (view.time is not None and view.time < self.until.time)

    def check_type(self, *topics: str) -> None:
        """Raise `InvalidInput` where no record of any of the topics can be of this type."""
        known = sorted(frozenset[str]().union(*(TYPES_OF.get(topic, frozenset[str]()) for topic in topics)))
        if self.type is None or any(one == self.type or one.startswith(self.type.rstrip(".") + ".") for one in known):
            return
        raise InvalidInput(f"no record of {', '.join(topics)} is of type {self.type!r}; types are {', '.join(known)}")

    @property
    def everything(self) -> bool:
        """True where every record matches."""
        return self == Filters()


def _begins(texts: Sequence[str], prefix: str) -> bool:
    return any(text.startswith(prefix) for text in texts)


TYPES_OF: dict[str, frozenset[str]] = {
    CONTROL: TYPES | {OPENED, CLOSED, DECIDED},
    FACTS: frozenset(FACT_TYPES),
    TASKS: frozenset({"rollout.claimable"}),
    SPANS: frozenset({"span", "sequence"}),
    BLOBS: frozenset({"blob"}),
    LIVENESS: frozenset({"heartbeat"}),
    SNAPSHOTS: frozenset({"manifest", "chunk", "cursor"}),
    DEAD: frozenset({ROLLOUT, RECORD, SUBSCRIBER}),
}
"""Topic -> the types that its records can have; what an older or newer release wrote has another type only in control."""

Pair = tuple[Record, View]


class TopicReader:
    """One topic of a log, whether it is stored or derived, partition by partition.

    `published`: read `tasks` and `facts` from the broker, which has them, instead of deriving them from `control`.
    """

    def __init__(self, log: Log, topic: str, fetch_blobs: bool = True, published: bool = False) -> None:
        known = TOPICS.get(topic)
        if known is None:
            raise InvalidInput(f"There is no topic {topic!r}; topics are {', '.join(TOPICS)}")
        self._log = log
        self._topic = topic
        self._decoder = Decoder(log, fetch_blobs)
        if published and known.derived and not on_broker(log):
            raise InvalidInput(f"{topic!r} is published on a Kafka only; {log.url} derives it from 'control'")
        derived = known.derived and not published
        self._derived = DerivedTopic(log, topic) if derived else None
        self._next = [] if derived else [0] * log.partitions(topic)
        if not derived and on_broker(log):  # which may forget the oldest by its settings; in a file that is damage
            self._next = [log.ends(topic, part)[0] for part in range(len(self._next))]
        self._by_offset = not known.derived
        """Positions are offsets in this topic; those of facts and tasks are positions in `control`."""

    def records(self, filters: Filters) -> Iterator[Pair]:
        """What matches, from where this reader stands to the end as it is now."""
        if self._derived is not None:
            while found := self._derived.read():
                yield from self._matching(found, filters)
            return
        for partition in range(len(self._next)):
            self._next[partition] = max(self._next[partition], self._first(filters))
            while found := self._log.read(self._topic, partition, self._next[partition], CHUNK):
                self._next[partition] = found[-1].offset + 1
                yield from self._matching(found, filters)
                if self._by_offset and filters.until.position is not None:
                    if self._next[partition] >= filters.until.position:
                        break

    def _first(self, filters: Filters) -> int:
        return filters.since.position or 0 if self._by_offset else 0

    def _matching(self, records: Sequence[Record], filters: Filters) -> Iterator[Pair]:
        for record in records:
            view = self._decoder.view(record)
            if filters.match(view):
                yield record, view

    def last(self, filters: Filters, count: int) -> list[Pair]:
        """The last `count` that match; reading goes on behind them. A stored topic is read from its end backwards."""
        if self._derived is not None:
            return list(deque(self.records(filters), maxlen=count)) if count else self._skip()
        if TOPICS[self._topic].compacted and not on_broker(self._log):  # few records, whatever their offsets
            return list(deque(self.records(filters), maxlen=count))
        found: list[Pair] = []
        for partition in range(len(self._next)):
            first, end = self._log.ends(self._topic, partition)
            self._next[partition] = end
            found += self._backwards(partition, max(first, self._first(filters)), end, filters, count)
        if len(self._next) > 1:
            found.sort(key=lambda pair: pair[1].time or 0.0)
        return found[-count:] if count else []

    def _skip(self) -> list[Pair]:
        assert self._derived is not None
        while self._derived.read():
            pass
        return []

    def _backwards(self, partition: int, first: int, end: int, filters: Filters, count: int) -> list[Pair]:
        chunks: list[list[Pair]] = []
        wanted, high = count, end
        size = count if filters.everything else CHUNK
        while wanted > 0 and high > first:
            low = max(first, high - max(size, 1))
            pairs: list[Pair] = []
            at = low
            while at < high and (records := self._log.read(self._topic, partition, at, min(CHUNK, high - at))):
                pairs += self._matching([record for record in records if record.offset < high], filters)
                at = records[-1].offset + 1
            chunks.append(pairs)
            wanted -= len(pairs)
            high, size = low, CHUNK
        return [pair for chunk in reversed(chunks) for pair in chunk][-count:]

    def follow(self, filters: Filters, show: Callable[[Record, View], None]) -> None:
        """Show what comes, for ever; the caller's Ctrl+C ends it. Ends by itself at an `until` that has passed."""
        while True:
            for record, view in self.records(filters):
                show(record, view)
            if self._passed(filters.until):
                return
            time.sleep(POLL_SECONDS)

    def _passed(self, until: Bound) -> bool:
        if until.time is not None:
            return time.time() >= until.time
        if until.position is None or not self._by_offset:
            return False
        return bool(self._next) and min(self._next) >= until.position


def topic_summary(log: Log, name: str, published: bool = False) -> dict[str, Any]:
    """Partitions, records, next offset, time of the last record and retention of one topic; what is not known is None.

    `records` of a compacted topic are those that are still there. `published`: see `TopicReader`.
    """
    topic = TOPICS[name]
    derived = topic.derived and not published
    kept = "derived from control" if derived else "the newest of a key" if topic.compacted else "for ever"
    if topic.derived and published:
        kept = "as the topic is set"
    row: dict[str, Any] = {"topic": name, "partitions": 1, "records": None, "next": None, "last_time": None, "kept": kept}
    reader = TopicReader(log, name, fetch_blobs=False, published=published)
    if derived:
        row["partitions"] = log.partitions(CONTROL)
        if sum(log.ends(CONTROL, part)[1] for part in range(row["partitions"])) <= DERIVE_LIMIT:
            count, last = 0, None
            for _, view in reader.records(Filters()):
                count, last = count + 1, view.time
            row.update(records=count, next=count, last_time=last)
        return row
    row["partitions"] = log.partitions(name)
    ends = [log.ends(name, part) for part in range(row["partitions"])]
    row["next"] = sum(end for _, end in ends)
    if not topic.compacted:
        row["records"] = sum(end - first for first, end in ends)
    elif not on_broker(log):
        row["records"] = _present(log, name)
    newest = reader.last(Filters(), 1)
    row["last_time"] = newest[-1][1].time if newest else None
    return row


def _present(log: Log, name: str) -> int:
    """The records of a compacted topic that are still there, counted."""
    count = 0
    for partition in range(log.partitions(name)):
        offset = 0
        while found := log.read(name, partition, offset, 256, headers=False):
            count += len(found)
            offset = found[-1].offset + 1
    return count
