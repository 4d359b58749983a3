"""Logs that misbehave in one chosen way, over a memory log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from agentlightning.core.errors import LogClosed, LogError, UnknownOutcome
from agentlightning.core.log.interface import Ack, Log, NewRecord, OnProblem, OnRecords, Subscription
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL, SPANS

from .tools import Unclosed


class HeldLog(Unclosed):
    """Keeps what its user follows of `topic` back while `held`; nothing is lost."""

    def __init__(self, log: Log, topic: str) -> None:
        super().__init__(log)
        self.held = False
        self._topic = topic
        self._kept: list[tuple[OnRecords, Any]] = []

    def follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        def hand_over(records: Any) -> None:
            if self.held and topic == self._topic:
                self._kept.append((on_records, records))
            else:
                on_records(records)

        return self._log.follow(topic, partition, offset, hand_over, on_problem)

    def release(self) -> None:
        self.held = False
        kept, self._kept = self._kept, []
        for on_records, records in kept:
            on_records(records)


class HoldingLog(Unclosed):
    """Keeps acknowledgements of control appends back while `holding`; the records are in the log all the while.

    `unplaced`: acknowledgements do not say where the records are (base offset -1).
    """

    def __init__(self, log: Log, unplaced: bool = False) -> None:
        super().__init__(log)
        self.holding = False
        self.unplaced = unplaced
        self.written = threading.Semaphore(0)
        self._held: list[Callable[[], None]] = []

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Any) -> None:
        def acknowledge(result: Ack | LogError) -> None:
            if self.unplaced and topic == CONTROL and isinstance(result, Ack):
                result = Ack(-1, result.count)
            if self.holding and topic == CONTROL:
                self._held.append(lambda: done(result))
                self.written.release()
            else:
                done(result)

        self._log.append(topic, partition, records, acknowledge)

    def release(self) -> None:
        """Let the acknowledgements through, and all later ones."""
        self.holding = False
        held, self._held = self._held, []
        for acknowledge in held:
            acknowledge()


class DyingLog(Unclosed):
    """Takes `left` appends to `topic`, then none any more: the process is dead for the log from there on."""

    def __init__(self, log: Log, left: int, topic: str = CONTROL) -> None:
        super().__init__(log)
        self.left = left
        self.topic = topic

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Any) -> None:
        if topic == self.topic:
            self.left -= 1
        if self.left < 0:
            threading.Thread(target=done, args=(LogClosed("dead"),)).start()
        else:
            self._log.append(topic, partition, records, done)


class ForgetfulLog(Unclosed):
    """Loses the answer of every second control append: written, or not written, in turns, and nobody knows."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.turn = 0
        self.lost = 0

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Any) -> None:
        if topic != CONTROL:
            self._log.append(topic, partition, records, done)
            return
        self.turn += 1
        unknown = UnknownOutcome("lost on the way")
        if self.turn % 4 == 1:
            self.lost += 1
            self._log.append(topic, partition, records, lambda _: done(unknown))
        elif self.turn % 4 == 3:
            self.lost += 1
            threading.Thread(target=done, args=(unknown,)).start()
        else:
            self._log.append(topic, partition, records, done)


class LosingLog(Unclosed):
    """Its spans topic can be pruned from the front, or be deleted and made anew."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.first = 0
        self._spans = log

    def _of(self, topic: str) -> Log:
        return self._spans if topic == SPANS else self._log

    def prune(self, first: int) -> None:
        """Drop the spans before offset `first`."""
        self.first = first

    def make_anew(self) -> None:
        """Delete the topic of spans; the new one begins at 0."""
        self.first, self._spans = 0, MemoryLog()

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Any) -> None:
        self._of(topic).append(topic, partition, records, done)

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        first, end = self._of(topic).ends(topic, partition)
        return (max(first, self.first) if topic == SPANS else first), end

    def read(self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True) -> Any:
        return self._of(topic).read(topic, partition, offset, max_records, headers=headers)

    def read_key(self, topic: str, key: str, *, after: int = -1, max_records: int | None = None, **_: Any) -> Any:
        first = self.first - 1 if topic == SPANS else -1
        return self._of(topic).read_key(topic, key, after=max(after, first), max_records=max_records)


class CountingLog(Unclosed):
    """Counts what its store asks of it."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._log, name)
        if not callable(found):
            return found

        def counted(*args: Any, **options: Any) -> Any:
            self.calls += 1
            return found(*args, **options)

        return counted


def copy_of_control(log: Log) -> MemoryLog:
    """Another log with the same control records."""
    copy, ready = MemoryLog(), threading.Event()
    records = [
        NewRecord(one.key, one.value, one.timestamp_us, one.headers) for one in log.read(CONTROL, 0, 0, 1_000_000)
    ]
    copy.append(CONTROL, 0, records, lambda _: ready.set())
    assert ready.wait(10)
    return copy
