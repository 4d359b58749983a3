"""Copying a log into an empty one, record by record; positions stay, offsets may shift."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from .errors import InvalidInput, LogError
from .log import Ack, Log, NewRecord, Record
from .topics import BLOBS, STORED, partition_of

COPY_RECORDS = 2048
COPY_BLOBS = 8
"""Blobs have up to 64 MB each."""
APPEND_BYTES = 4 << 20
"""Records go into the target in appends of this size, which any log takes; a larger record goes alone."""


def copy_log(source: Log, target: Log) -> dict[str, int]:
    """Copy every stored topic; return the records copied by topic. Raises `InvalidInput` unless `target` is empty."""
    for topic in STORED:
        if any(target.ends(topic, part)[1] for part in range(target.partitions(topic))):
            raise InvalidInput(f"a log is copied into an empty one only; {target.url} has records in {topic!r}")
    copied: dict[str, int] = {}
    for topic in STORED:
        if topic == "snapshots":  # they name offsets of the log they were made in; the copy makes its own
            continue
        copied[topic] = 0
        for partition in range(source.partitions(topic)):
            offset, end = source.ends(topic, partition)
            while offset < end:
                records = source.read(topic, partition, offset, COPY_BLOBS if topic == BLOBS else COPY_RECORDS)
                if not records:
                    break
                _append(target, topic, records)
                copied[topic] += len(records)
                offset = records[-1].offset + 1
    return copied


def _append(target: Log, topic: str, records: Sequence[Record]) -> None:
    by_partition: dict[int, list[NewRecord]] = {}
    for record in records:
        partition = partition_of(record.key, target.partitions(topic))
        new = NewRecord(record.key, record.value, record.timestamp_us, record.headers)
        by_partition.setdefault(partition, []).append(new)
    parts = [(partition, part) for partition, batch in by_partition.items() for part in _parts(batch)]
    for partition, batch in parts:
        ready = threading.Event()
        outcome: list[Ack | LogError] = []

        def done(result: Ack | LogError, outcome: list[Ack | LogError] = outcome, ready: threading.Event = ready) -> None:
            outcome.append(result)
            ready.set()

        target.append(topic, partition, batch, done)
        ready.wait()
        if isinstance(outcome[0], LogError):
            raise outcome[0]


def _parts(batch: Sequence[NewRecord]) -> Iterator[list[NewRecord]]:
    part: list[NewRecord] = []
    size = 0
    for record in batch:
        if part and size + len(record.value) > APPEND_BYTES:
            yield part
            part, size = [], 0
        part.append(record)
        size += len(record.value) + 256
    if part:
        yield part
