"""What the memory log and the SQLite log share: one committer thread, group commit, followers, consumer groups."""

from __future__ import annotations

import logging
import os
import queue
import threading
from abc import abstractmethod
from collections.abc import Sequence

from .errors import InvalidInput, LogClosed, LogError, StorageError
from .local_groups import Groups
from .log import Ack, Done, Log, Membership, NewRecord, OnProblem, OnRecords, Record, Subscription
from .log_follow import Feed
from .log_records import PendingAppend, PendingCommit, check_append, check_topic
from .topics import STORED

logger = logging.getLogger(__name__)

BATCH_APPENDS = 4096
BATCH_BYTES = 32_000_000

Pending = PendingAppend | PendingCommit


class EmbeddedLog(Log):
    """A log in this process. Everything that is queued while a commit runs goes into the next one.

    Subclasses give `_commit` (one transaction), `_records` (the records of a committed append), `read`, `read_key`,
    `ends`, and call `_start` when they are ready.
    """

    def __init__(self, url: str, log_id: str, partitions: int = 1) -> None:
        self.url = url
        self.log_id = log_id
        self._partitions = partitions
        self._pid = os.getpid()
        self._queue: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._feeds: dict[tuple[str, int], Feed] = {}
        self._groups = Groups(self)
        self._thread: threading.Thread | None = None

    def _start(self) -> None:
        for topic in STORED:
            for partition in range(self._partitions):
                self._feeds[topic, partition] = self._feed(topic, partition)
        self._thread = threading.Thread(target=self._run, name=f"agl-log-{self.log_id[:6]}", daemon=True)
        self._thread.start()

    def _feed(self, topic: str, partition: int) -> Feed:
        return Feed(
            f"{topic}[{partition}]",
            self.ends(topic, partition)[1],
            lambda offset, most: self.read(topic, partition, offset, most),
            lambda: self.ends(topic, partition)[1],
        )

    def partitions(self, topic: str) -> int:
        check_topic(topic)
        return self._partitions

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        check_topic(topic)
        self._check_partition(partition)
        self._check_process()
        pending = check_append(topic, partition, records, done)
        with self._gate:
            if not self._closed:
                self._queue.put(pending)
                return
        # Rules of the seam: the answer comes from a thread of the log, also when the log is gone.
        threading.Thread(target=_answer, args=(done, LogClosed("the log was closed")), daemon=True).start()

    def _check_partition(self, partition: int) -> None:
        if not 0 <= partition < self._partitions:
            raise InvalidInput(f"there is no partition {partition}; this log has {self._partitions}")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise LogClosed("the log belongs to the process that opened it, not to its forked children")

    # The committer

    def _run(self) -> None:
        ended = False
        while not ended:
            first = self._queue.get()
            if first is None:
                break
            batch: list[Pending] = [first]
            size = getattr(first, "size", 0)
            while len(batch) < BATCH_APPENDS and size < BATCH_BYTES:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    ended = True
                    break
                batch.append(item)
                size += getattr(item, "size", 0)
            self._settle(batch)
        self._end()

    def _settle(self, batch: list[Pending]) -> None:
        appends = [item for item in batch if isinstance(item, PendingAppend)]
        commits = [item for item in batch if isinstance(item, PendingCommit)]
        try:
            results: Sequence[Ack | LogError] = self._commit(appends, commits)
        except Exception as error:  # not the disk's refusal but a fault of ours: every caller is told, the log goes on
            logger.exception("The log failed to commit.")
            results = [StorageError(f"the log failed to commit: {error}")] * len(appends)
        for pending, result in zip(appends, results):
            _answer(pending.done, result)
        self._publish(appends, results)

    def _publish(self, appends: list[PendingAppend], results: Sequence[Ack | LogError]) -> None:
        grown = False
        for pending, result in zip(appends, results):
            if isinstance(result, Ack):
                grown = True
                feed = self._feeds[pending.topic, pending.partition]
                records = self._records(pending, result.base_offset) if feed.wanted else ()
                feed.publish(result.base_offset, result.base_offset + result.count, records)
        if grown:
            self._groups.wake()

    @abstractmethod
    def _commit(self, appends: Sequence[PendingAppend], commits: Sequence[PendingCommit]) -> Sequence[Ack | LogError]:
        """Make these durable in one step, in order; one result for each append. Runs in the committer thread."""

    def _records(self, pending: PendingAppend, base: int) -> list[Record]:
        return [
            Record(
                pending.topic, pending.partition, base + at, new.key, new.value, new.timestamp_us, new.headers
            )
            for at, new in enumerate(pending.records)
        ]

    def _end(self) -> None:
        """Release what the committer thread holds; the last thing that it does."""

    # Following, groups, closing

    def follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        check_topic(topic)
        self._check_partition(partition)
        return self._feeds[topic, partition].follow(offset, on_records, on_problem)

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Membership:
        for topic in topics:
            check_topic(topic)
        return self._groups.join(group, topics, member_id)

    def committed(self, group: str, topic: str, partition: int) -> int:
        """Where a group goes on reading: the committed offset, 0 without one."""
        return 0

    def commit_offset(self, group: str, topic: str, partition: int, offset: int) -> None:
        """Keep a group's offset; it goes into the log's next transaction."""
        with self._gate:
            if self._closed:
                raise LogClosed("the log was closed")
            self._queue.put(PendingCommit(group, topic, partition, offset))

    def close(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._groups.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        for feed in self._feeds.values():
            feed.fail(LogClosed("the log was closed"))


def _answer(done: Done, result: Ack | LogError) -> None:
    try:
        done(result)
    except Exception:  # a writer's callback must not end the log for everybody else
        logger.exception("A callback of the log raised.")
