"""What the memory log and the SQLite log share: one committer thread, group commit, followers, consumer groups."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from queue import SimpleQueue

from ...errors import InvalidInput, LogClosed, LogError, LogFull, UnknownOutcome
from ..append_checks import PendingAppend, PendingCommit, check_append, check_topic
from ..interface import Ack, Done, Log, Membership, NewRecord, OnProblem, OnRecords, Record, Subscription
from ..topics import STORED, TOPICS
from .consumer_group import Groups
from .follower import Feed

logger = logging.getLogger(__name__)

BATCH_APPENDS = 4096
BATCH_BYTES = 32_000_000
QUEUED_BYTES = 1_000_000_000
"""What may wait for the committer; more is refused with `LogFull`, since `append` does not block."""

Pending = PendingAppend | PendingCommit


class EmbeddedLog(Log):
    """A log in this process. Everything that is queued while a commit runs goes into the next one.

    Subclasses give `_commit` (one transaction), `read`, `read_key`, `ends` and `_end`, and call `_start` when they are
    ready. The committer thread holds the log weakly: one that was dropped without `close` ends its thread.
    """

    def __init__(self, url: str, log_id: str) -> None:
        self.url = url
        self.log_id = log_id
        self._pid = os.getpid()
        self._queue: SimpleQueue[Pending | None] = SimpleQueue()
        self._queued_bytes = 0
        self._gate = threading.Lock()
        self._closed = False
        self._feeds: dict[str, Feed] = {}
        self._groups = Groups(self)
        self._thread: threading.Thread | None = None

    def _start(self) -> None:
        for topic in STORED:
            self._feeds[topic] = self._feed(topic)
        weakref.finalize(self, self._queue.put, None).atexit = False
        self._thread = threading.Thread(
            target=_work, args=(weakref.ref(self), self._queue), name=f"agl-log-{self.log_id[:6]}", daemon=True
        )
        self._thread.start()

    def _feed(self, topic: str) -> Feed:
        return Feed(
            f"{topic}[0]",
            self.ends(topic, 0)[1],
            lambda offset, most: self.read(topic, 0, offset, most),
            lambda: self.ends(topic, 0)[1],
        )

    def partitions(self, topic: str) -> int:
        check_topic(topic)
        return 1

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        """See `Log.append`. Raises `InvalidInput` at once for what no log could store, `LogClosed` in a forked child."""
        self._check_place(topic, partition)
        self._check_process()
        pending = check_append(topic, partition, records, done)
        with self._gate:
            if not self._closed:
                if self._queued_bytes + pending.size > QUEUED_BYTES:
                    pending.refused = LogFull(f"more than {QUEUED_BYTES} bytes wait for the disk; nothing was written")
                else:
                    self._queued_bytes += pending.size
                self._queue.put(pending)
                return
        # Rules of the seam: the answer comes from a thread of the log, also when the log is gone.
        threading.Thread(target=_answer, args=(done, LogClosed("the log was closed")), daemon=True).start()

    # Checks

    def _check_place(self, topic: str, partition: int) -> None:
        check_topic(topic)
        if partition != 0:
            raise InvalidInput(f"there is no partition {partition}; a topic of this log has one, 0")

    def _check_indexed(self, topic: str) -> None:
        check_topic(topic)
        if not TOPICS[topic].by_key:
            raise InvalidInput(f"topic {topic!r} is not read by key")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise LogClosed("the log belongs to the process that opened it, not to its forked children")

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise LogClosed("the log was closed")

    # The committer

    def _drain(self, first: Pending | None) -> bool:
        """Commit and answer `first` and what has queued up behind it; return whether more is to come."""
        item = first
        batch: list[Pending] = []
        size = 0
        while item is not None:
            batch.append(item)
            size += item.size
            if len(batch) >= BATCH_APPENDS or size >= BATCH_BYTES or self._queue.empty():
                break
            item = self._queue.get_nowait()
        if batch:
            self._settle(batch)
        if item is None:
            self._end()
        return item is not None

    def _settle(self, batch: list[Pending]) -> None:
        appends = [item for item in batch if isinstance(item, PendingAppend) and item.refused is None]
        commits = [item for item in batch if isinstance(item, PendingCommit)]
        results: Sequence[Ack | LogError] = ()
        if appends or commits:
            try:
                results = self._commit(appends, commits)
            except Exception as error:  # not the disk's refusal but a fault of ours: every caller gets it, the log goes on
                logger.exception("The log failed to commit.")
                results = [UnknownOutcome(f"the log failed to commit: {error}") for _ in appends]
        with self._gate:
            self._queued_bytes -= sum(item.size for item in appends)
        answers = iter(results)
        for item in batch:
            if isinstance(item, PendingAppend):
                _answer(item.done, next(answers) if item.refused is None else item.refused)
        self._publish(appends, results)

    def _publish(self, appends: list[PendingAppend], results: Sequence[Ack | LogError]) -> None:
        """Deliver what was written to the followers, once for each topic, and wake the groups."""
        landed: dict[str, list[tuple[PendingAppend, Ack]]] = {}
        for pending, result in zip(appends, results):
            if isinstance(result, Ack):
                landed.setdefault(pending.topic, []).append((pending, result))
        for topic, pairs in landed.items():
            feed = self._feeds[topic]
            records: list[Record] = []
            if feed.wanted:
                for pending, ack in pairs:
                    records.extend(self._records(pending, ack.base_offset))
            last = pairs[-1][1]
            feed.publish(pairs[0][1].base_offset, last.base_offset + last.count, records)
        if landed:
            self._groups.wake()

    @abstractmethod
    def _commit(self, appends: Sequence[PendingAppend], commits: Sequence[PendingCommit]) -> Sequence[Ack | LogError]:
        """Make these durable in one step, in order; one result for each append. Runs in the committer thread."""

    def _records(self, pending: PendingAppend, base: int) -> list[Record]:
        return [
            Record(pending.topic, 0, offset, new.key, new.value, new.timestamp_us, new.headers)
            for offset, new in enumerate(pending.records, base)
        ]

    def _end(self) -> None:
        """Release what the committer thread holds; the last thing that it does."""

    # Following, groups, closing

    def follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        self._check_place(topic, partition)
        check_offset(offset)
        self._check_open()
        return self._feeds[topic].follow(offset, on_records, on_problem)

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Membership:
        """See `Log.join`. Raises `InvalidInput` for no topics and for a member id that the group has already."""
        for topic in topics:
            check_topic(topic)
        self._check_open()
        return self._groups.join(group, topics, member_id)

    def committed(self, group: str, topic: str, partition: int) -> int:
        """Where a group goes on reading: the committed offset, 0 without one."""
        return 0

    def commit_offset(self, group: str, topic: str, partition: int, offset: int) -> None:
        """Keep a group's offset; it goes into the log's next transaction."""
        self._check_process()
        with self._gate:
            if self._closed:
                raise LogClosed("the log was closed")
            self._queue.put(PendingCommit(group, topic, partition, offset))

    def close(self) -> None:
        """See `Log.close`. Returns when everything is released; followers get `LogClosed`."""
        if os.getpid() != self._pid:
            return
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._groups.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        for feed in self._feeds.values():
            feed.fail(LogClosed("the log was closed"))


def check_offset(offset: int) -> None:
    """Raise `InvalidInput` for what is no offset."""
    if offset < 0:
        raise InvalidInput(f"an offset is 0 or more, not {offset}")


def _work(log_of: weakref.ref[EmbeddedLog], queue: SimpleQueue[Pending | None]) -> None:
    more = True
    while more:
        item = queue.get()
        log = log_of()
        if log is None:
            return
        more = log._drain(item)  # pyright: ignore[reportPrivateUsage]
        del log


def _answer(done: Done, result: Ack | LogError) -> None:
    try:
        done(result)
    except Exception:  # a writer's callback must not end the log for everybody else
        logger.exception("A callback of the log raised.")
