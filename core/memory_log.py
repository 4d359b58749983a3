"""The log in memory: for tests and for stores that need not outlive their process."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from itertools import count

from .embedded_log import EmbeddedLog
from .errors import InvalidInput, LogError
from .log import Ack, Record
from .log_records import PendingAppend, PendingCommit, check_topic
from .topics import STORED, TOPICS, partition_of

_names = count(1)


class _Partition:
    """The records of one partition in order, and where the records of a key lie."""

    __slots__ = ("by_key", "compacted", "end", "indexed", "records")

    def __init__(self, topic: str) -> None:
        self.records: list[Record] = []
        self.by_key: dict[str, list[Record]] = {}
        self.compacted = TOPICS[topic].compacted
        self.indexed = TOPICS[topic].by_key
        self.end = 0

    def add(self, record: Record) -> None:
        self.end = record.offset + 1
        if self.compacted:
            for old in self.by_key.pop(record.key, ()):
                del self.records[bisect_left(self.records, old.offset, key=_offset)]
        self.records.append(record)
        if self.indexed:
            self.by_key.setdefault(record.key, []).append(record)


def _offset(record: Record) -> int:
    return record.offset


class MemoryLog(EmbeddedLog):
    """A log that is gone when the process ends. Acknowledged means: visible to every reader."""

    def __init__(self, partitions: int = 1) -> None:
        super().__init__(f"memory://{next(_names)}", os.urandom(8).hex(), partitions)
        self._parts = {(topic, part): _Partition(topic) for topic in STORED for part in range(partitions)}
        self._start()

    def _commit(self, appends: Sequence[PendingAppend], commits: Sequence[PendingCommit]) -> Sequence[Ack | LogError]:
        acks: list[Ack] = []
        for pending in appends:
            part = self._parts[pending.topic, pending.partition]
            base = part.end
            for record in self._records(pending, base):
                part.add(record)
            acks.append(Ack(base, len(pending.records)))
        return acks

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        check_topic(topic)
        self._check_partition(partition)
        records = self._parts[topic, partition].records
        start = max(offset, 0)
        if self._parts[topic, partition].compacted:
            start = bisect_left(records, offset, key=_offset)
        return records[start : start + max_records]

    def read_key(self, topic: str, key: str, *, after: int = -1, max_records: int | None = None) -> Sequence[Record]:
        check_topic(topic)
        if not TOPICS[topic].by_key:
            raise InvalidInput(f"topic {topic!r} is not read by key")
        found = self._parts[topic, partition_of(key, self._partitions)].by_key.get(key, [])
        wanted = list(found) if after < 0 else [record for record in found if record.offset > after]
        return wanted if max_records is None else wanted[:max_records]

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        check_topic(topic)
        self._check_partition(partition)
        return 0, self._parts[topic, partition].end
