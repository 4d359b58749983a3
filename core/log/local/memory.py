"""The log in memory: for tests and for stores that need not outlive their process."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Sequence
from itertools import count

from ...errors import LogClosed, LogError
from ..append_checks import PendingAppend, PendingCommit
from ..interface import EVERYWHERE, Ack, KeyRange, Record
from ..topics import STORED, TOPICS, Topic
from .group_commit import EmbeddedLog, check_offset

_names = count(1)


class _Records:
    """The records of one topic in order, and where the records of a key lie.

    What a newer record of its key replaced becomes None first; the list is packed when half of it is that.
    """

    __slots__ = ("by_key", "end", "offsets", "records", "replaced", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.records: list[Record | None] = []
        self.offsets: list[int] = []
        """Parallel to `records`, for compacted topics; elsewhere the index is the offset."""
        self.by_key: dict[str, list[Record]] = {}
        self.replaced = 0
        self.end = 0

    def add(self, record: Record) -> None:
        self.end = record.offset + 1
        self.records.append(record)
        if self.topic.compacted:
            self.offsets.append(record.offset)
            for old in self.by_key.pop(record.key, ()):
                self.records[bisect_left(self.offsets, old.offset)] = None
                self.replaced += 1
            if self.replaced > 64 and self.replaced * 2 > len(self.records):
                self.records = [kept for kept in self.records if kept is not None]
                self.offsets = [kept.offset for kept in self.records if kept is not None]
                self.replaced = 0
        if self.topic.by_key or self.topic.compacted:
            self.by_key.setdefault(record.key, []).append(record)

    def read(self, offset: int, max_records: int) -> list[Record]:
        index = bisect_left(self.offsets, offset) if self.topic.compacted else offset
        found: list[Record] = []
        while len(found) < max_records and index < len(self.records):
            chunk = self.records[index : index + max_records - len(found)]
            found.extend(record for record in chunk if record is not None)
            index += len(chunk)
        return found

    def first(self) -> int:
        if not self.topic.compacted:
            return 0
        return next((record.offset for record in self.records if record is not None), self.end)


class MemoryLog(EmbeddedLog):
    """A log that is gone when the process ends. Acknowledged means: visible to every reader."""

    def __init__(self) -> None:
        super().__init__(f"memory://{next(_names)}", os.urandom(8).hex())
        self._lock = threading.Lock()
        self._ended = False
        self._records_of = {topic: _Records(TOPICS[topic]) for topic in STORED}
        self._start()

    def __enter__(self) -> MemoryLog:
        return self

    def _commit(self, appends: Sequence[PendingAppend], commits: Sequence[PendingCommit]) -> Sequence[Ack | LogError]:
        acks: list[Ack] = []
        with self._lock:
            for pending in appends:
                kept = self._records_of[pending.topic]
                base = kept.end
                for record in self._records(pending, base):
                    kept.add(record)
                acks.append(Ack(base, len(pending.records)))
        return acks

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        self._check_place(topic, partition)
        check_offset(offset)
        with self._lock:
            self._check_readable()
            return self._records_of[topic].read(offset, max_records)

    def read_key(
        self, topic: str, key: str, *, after: int = -1, max_records: int | None = None, within: KeyRange = EVERYWHERE
    ) -> Sequence[Record]:
        self._check_indexed(topic)
        with self._lock:
            self._check_readable()
            found = self._records_of[topic].by_key.get(key, [])
            first = bisect_left(found, after + 1, key=_offset)
            return found[first:] if max_records is None else found[first : first + max_records]

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        self._check_place(topic, partition)
        with self._lock:
            kept = self._records_of[topic]
            return kept.first(), kept.end

    def _check_readable(self) -> None:
        self._check_process()
        if self._ended:
            raise LogClosed("the log was closed")

    def _end(self) -> None:
        with self._lock:
            self._ended = True


def _offset(record: Record) -> int:
    return record.offset
