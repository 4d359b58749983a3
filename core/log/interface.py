"""The log seam: what every log (SQLite file, memory, later Kafka) offers to the rest of the system.

A log has topics, a topic has partitions, a partition is a gapless sequence of records with offsets from 0. The seam is
made of plain calls and callbacks, not of coroutines, so that one store may serve several event loops and threads and a
log may run threads or a loop of its own. It offers no compare-and-append: Kafka cannot do it, so nothing may rely on it.

Rules for every implementation (tests/core/log/log_contract.py runs them all):

- `append` never blocks; `done` is called exactly once, from a thread of the log, in the order of the appends to that
  partition, after the batch is durable (see `Topic.durable`). The records of one append get consecutive offsets or none.
- Appends to different partitions do not wait for each other: who refers to a record waits for its acknowledgement.
- An acknowledgement may carry base offset -1: the records are in the log, the log cannot say where.
- `UnknownOutcome` given to `done` means: perhaps written. Any other error means: not written.
- After `close` every append is answered with `LogClosed`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import msgspec

from ..errors import LogError

Headers = tuple[tuple[str, str], ...]
"""Header names and texts; never secrets, never user data (they are shown by any Kafka tool without decoding)."""


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """A record on its way into the log: `timestamp_us` is the writer's wall clock in microseconds, informative only."""

    key: str
    value: bytes
    timestamp_us: int
    headers: Headers = ()


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record of the log. `offset` is 0-based and gapless in its partition."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    timestamp_us: int
    headers: Headers = ()


class Ack(msgspec.Struct, frozen=True):
    """The records are durable; they have the offsets base_offset, base_offset + 1, ... or unknown ones (-1)."""

    base_offset: int
    count: int


class KeyRange(msgspec.Struct, frozen=True):
    """Where the records of a key lie, as far as the caller knows it; a log that has an index of keys has no use for it.

    None lies below offset `first`. None was written before `since_us` by the writers' clocks. Those that are asked for lie
    below offset `end` (None: anywhere) or were written until `until_us`.
    """

    first: int = 0
    end: int | None = None
    since_us: int | None = None
    until_us: int | None = None


EVERYWHERE = KeyRange()

Done = Callable[["Ack | LogError"], None]
"""Called once per append, from a thread of the log. It must be quick and must not raise."""

OnRecords = Callable[[Sequence[Record]], None]
OnProblem = Callable[[LogError], None]


class Subscription(ABC):
    """A running `follow`; close it to stop. After `close` returned, its callback is not called again."""

    @abstractmethod
    def close(self) -> None: ...

    def passed(self, offset: int) -> None:  # noqa: B027 (a hint, which most logs have no use for)
        """Say that everything below `offset` is known already: what lies below it may be left out. From any thread.

        Who calls it applies the records of its own appends when they are acknowledged, and says so here each time.
        """


class Membership(ABC):
    """One member of a consumer group: polls records of the partitions it was assigned.

    A member that stops polling or dies gives its partitions to the others. Committed offsets belong to the group and
    survive it; they say where reading goes on, never who owns a task.
    """

    @abstractmethod
    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[Record]:
        """Return up to `max_records` new records, waiting up to `timeout_seconds` for the first; maybe none."""

    @abstractmethod
    def commit(self, topic: str, partition: int, offset: int) -> None:
        """Say that everything below `offset` is done. Raises `LogError` if the partition is no longer ours."""

    @abstractmethod
    def assignment(self) -> frozenset[tuple[str, int]]:
        """The (topic, partition) pairs that this member reads now."""

    @abstractmethod
    def pause(self) -> None:
        """Take no more records but stay a member."""

    @abstractmethod
    def resume(self) -> None:
        """Take records again after `pause`."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group at once."""


class Log(ABC):
    """An append-only log of topics. All methods may be called from any thread."""

    url: str
    """The address it was opened by, without secrets."""

    log_id: str
    """Made once when the log is created; a copy or a new log has another one. Position tokens carry it."""

    @abstractmethod
    def partitions(self, topic: str) -> int:
        """The number of partitions of `topic`; fixed for the life of the log."""

    @abstractmethod
    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        """Add `records` to the end, all or none; the outcome goes to `done`."""

    def append_staged(
        self, topic: str, partition: int, take: Callable[[], Sequence[NewRecord]], done: Done
    ) -> None:
        """As `append`, of the records that `take` gives: called once, as late as possible, so that more may join meanwhile.

        It is called from here or from a thread of the log, and must not raise. The records are those of the store, which has
        checked them. Where there are none, `done` gets the `Ack` of no records.
        """
        records = take()
        if records:
            self.append(topic, partition, records, done)
        else:
            done(Ack(-1, 0))

    @abstractmethod
    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        """Return up to `max_records` records from `offset` on, in order; none at the end. Blocks for the I/O only.

        `headers=False` may leave the headers out (readers that fold do not need them). Raises `LogCorrupt` with the
        position of the first record that is torn or altered, `OffsetLost` where the offset is before the start.
        """

    @abstractmethod
    def read_key(
        self, topic: str, key: str, *, after: int = -1, max_records: int | None = None, within: KeyRange = EVERYWHERE
    ) -> Sequence[Record]:
        """Return the records of `key` with offset > `after` in its partition, in order. Topics with `by_key` only.

        What lies outside of `within` may be left out.
        """

    @abstractmethod
    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        """Return (first offset that is still there, offset of the next record)."""

    def ask_end(
        self, topic: str, partition: int, done: Callable[[int | LogError], None], at_least: int = 0
    ) -> None:
        """Give `done` the offset of the next record, asked after this call: what was acknowledged before lies below it.

        Does not block where the answer comes over a network; `done` is called once, from here or from a thread of the log.
        `at_least`: an end that another process was given; a broker whose answer is lower is asked again for some seconds.
        """
        try:
            end: int | LogError = self.ends(topic, partition)[1]
        except LogError as error:
            end = error
        done(end)

    def known_ends(self, topic: str) -> Mapping[int, int]:
        """Partition -> end below which this process knows of records, where an end that is asked for may be too low.

        Empty where `ask_end` is always right, as in a log of this machine.
        """
        return {}

    def note_end(self, topic: str, partition: int, end: int) -> None:  # noqa: B027 (only ends that are asked for need it)
        """Say that records below `end` are known to be there, as another record says. Does not block; from any thread."""

    def append_limit(self, topic: str) -> int:
        """Bytes up to which one append is surely taken: who joins commands of several callers keeps below it."""
        return 1 << 62

    @abstractmethod
    def follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        """Call `on_records` with every record from `offset` on, in order, from a thread of the log, for ever.

        `on_problem` is called once, instead of going on, for `OffsetLost` (a gap or a truncation) and other errors.
        """

    @abstractmethod
    def join(self, group: str, topics: Sequence[str], member_id: str) -> Membership:
        """Join consumer group `group`; records come from the group's committed offsets on, or from the start."""

    @abstractmethod
    def close(self) -> None:
        """Finish the appends under way, then close. Idempotent."""

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
