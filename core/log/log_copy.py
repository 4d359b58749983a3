"""Copying a log into an empty one, record by record; positions stay, offsets may shift.

A copy that ended early must not pass for a sound one: a file gets its name when it is complete, and every target is marked
in its topic `snapshots` before the first record and after the last. No store opens a log whose copy was not finished.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec

from ..errors import InvalidInput, LogCorrupt, LogError, StorageError
from .interface import Ack, Log, NewRecord, Record
from .topics import BLOBS, SNAPSHOTS, SPANS, STORED, TOPICS, partition_of

COPY_RECORDS = 2048
COPY_BLOBS = 8
"""Blobs have up to 64 MB each."""
APPEND_BYTES = 4 << 20
"""Records go into the target in appends of this size, which any log takes; a larger record goes alone."""
MARK = "copy"
"""Key of the mark in `snapshots`."""
INCOMPLETE = ".incomplete"
"""What the name of a file ends in while it is copied to."""


class CopyMark(msgspec.Struct, frozen=True):
    """What a target says about its copy. `span_partitions`: those of the log in which the watermarks were written."""

    source: str
    span_partitions: int
    unfinished: bool

    @property
    def sentence(self) -> str:
        """What an unfinished one means."""
        return (
            f"this is a part of log {self.source}: `agl log copy` ended before everything was copied. Copy again into a new "
            "file, or into topics that were deleted and made anew"
        )


def copy_mark(log: Log) -> CopyMark | None:
    """The mark of a log that was copied; None of any other."""
    for record in log.read_key(SNAPSHOTS, MARK)[-1:]:
        with contextlib.suppress(msgspec.MsgspecError):  # not ours
            return msgspec.json.decode(record.value, type=CopyMark)
    return None


def refuse_unfinished(log: Log) -> None:
    """Raise `LogCorrupt` where `log` is the target of a copy that ended early."""
    mark = copy_mark(log)
    if mark is not None and mark.unfinished:
        raise LogCorrupt(f"{log.url} cannot be used: {mark.sentence}", position=0)


def copy_to_file(source: Log, path: Path) -> dict[str, int]:
    """Copy `source` into a new file, which has its name as soon as it is complete; return the records by topic.

    What an earlier copy to the same name left is replaced. Raises `InvalidInput` where there is such a file.
    """
    from .sqlite import SqliteLog

    part = path.with_name(path.name + INCOMPLETE)
    if os.path.lexists(path):
        raise InvalidInput(f"{path} exists; a log is copied to a new file only")
    _remove(part)
    try:
        with SqliteLog(part) as target:
            copied = copy_log(source, target)
        if os.path.exists(f"{part}-wal") and os.stat(f"{part}-wal").st_size:
            raise StorageError(f"{part} could not be brought into order, a reader is in the way; copy again")
        try:
            os.link(part, path)  # unlike a rename it replaces nothing
        except FileExistsError:
            raise InvalidInput(f"{path} exists; a log is copied to a new file only") from None
        except OSError:  # a file system without hard links
            os.rename(part, path)
    finally:
        _remove(part)
    return copied


def _remove(part: Path) -> None:
    """Remove an incomplete copy. Raises `LogLocked` where another process is making it, `StorageError` where it cannot."""
    from .sqlite.writer_lock import WriterLock

    if not any(os.path.lexists(f"{part}{end}") for end in ("", "-wal", "-shm", ".lock")):
        return
    lock = WriterLock(part)
    try:
        for end in ("", "-wal", "-shm", ".lock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{part}{end}")
    except OSError as error:
        raise StorageError(f"{part} cannot be removed: {error.strerror or error}") from error
    finally:
        lock.release()


def copy_log(source: Log, target: Log) -> dict[str, int]:
    """Copy every stored topic; return the records copied by topic. Raises `InvalidInput` unless `target` is empty."""
    for topic in STORED:
        if any(target.ends(topic, part)[1] for part in range(target.partitions(topic))):
            raise InvalidInput(f"a log is copied into an empty one only; {target.url} has records in {topic!r}")
    refuse_unfinished(source)
    before = copy_mark(source)
    written_for = before.span_partitions if before is not None else source.partitions(SPANS)
    _mark(target, CopyMark(source.log_id, written_for, unfinished=True))
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
            if offset < end and not TOPICS[topic].compacted:
                raise LogCorrupt(
                    f"{source.url} has no record at offset {offset} of {topic}[{partition}]", position=offset
                )
    _mark(target, CopyMark(source.log_id, written_for, unfinished=False))
    return copied


def _mark(target: Log, mark: CopyMark) -> None:
    stamp = int(time.time() * 1_000_000)
    _append(target, SNAPSHOTS, [Record(SNAPSHOTS, 0, 0, MARK, msgspec.json.encode(mark), stamp, ())])


def _append(target: Log, topic: str, records: Sequence[Record]) -> None:
    by_partition: dict[int, list[NewRecord]] = {}
    for record in records:
        partition = partition_of(record.key, target.partitions(topic))
        new = NewRecord(record.key, record.value, record.timestamp_us, record.headers)
        by_partition.setdefault(partition, []).append(new)
    parts = [(partition, part) for partition, batch in by_partition.items() for part in _parts(batch)]
    for partition, batch in parts:
        answered: Future[Ack | LogError] = Future()
        target.append(topic, partition, batch, answered.set_result)
        if isinstance(answer := answered.result(), LogError):
            raise answer


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
