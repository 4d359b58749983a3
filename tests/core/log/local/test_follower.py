"""A feed hands every follower every record once, also where what is committed can be read before it is published."""

from __future__ import annotations

import threading

from agentlightning.core.errors import LogError, OffsetLost
from agentlightning.core.log.interface import Record
from agentlightning.core.log.local.follower import Feed

from ..log_contract import until


class Partition:
    """Records that can be read, and a feed that is told of them when the test says so."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.reads = 0
        self.feed = Feed("control[0]", 0, self._read, lambda: len(self.records))
        self.got: list[int] = []
        self.problems: list[LogError] = []

    def _read(self, offset: int, most: int) -> list[Record]:
        self.reads += 1
        return self.records[offset : offset + most]

    def commit(self, count: int) -> list[Record]:
        base = len(self.records)
        new = [Record("control", 0, base + index, "k", b"", 0) for index in range(count)]
        self.records += new
        return new

    def publish(self, records: list[Record]) -> None:
        self.feed.publish(records[0].offset, records[-1].offset + 1, records)

    def follow(self, offset: int) -> None:
        self.feed.follow(
            offset, lambda records: self.got.extend(record.offset for record in records), self.problems.append
        )


def test_what_was_read_before_it_was_published_is_not_handed_over_twice() -> None:
    part = Partition()
    first, second = part.commit(3), part.commit(3)
    part.follow(1)
    until(lambda: part.got == [1, 2, 3, 4, 5] and part.feed.wanted)
    part.publish(first)
    part.publish(second)
    part.publish(part.commit(1))
    assert part.got == [1, 2, 3, 4, 5, 6]


def test_a_batch_that_overlaps_what_was_read_is_cut() -> None:
    part = Partition()
    part.commit(3)
    part.follow(1)
    until(lambda: part.feed.wanted)
    part.commit(2)
    part.publish(part.records)
    assert part.got == [1, 2, 3, 4]


def test_a_live_follower_costs_no_read() -> None:
    part = Partition()
    part.follow(0)
    for _ in range(10):
        part.publish(part.commit(2))
    assert part.got == list(range(20)) and part.reads == 0


def test_a_follower_that_missed_a_batch_reads_it() -> None:
    part = Partition()
    part.follow(0)
    part.commit(5)
    part.publish(part.commit(1))
    until(lambda: part.got == list(range(6)))


def test_a_log_that_got_shorter_ends_who_read_past_its_end_and_nobody_else() -> None:
    part = Partition()
    part.follow(0)
    part.publish(part.commit(5))
    del part.records[3:]
    part.feed.shrink(3)
    assert [type(problem) for problem in part.problems] == [OffsetLost]
    part.follow(3)
    until(lambda: part.feed.wanted)
    part.publish(part.commit(1))
    assert part.got == [0, 1, 2, 3, 4, 3] and len(part.problems) == 1


def test_a_follower_that_is_closed_while_it_catches_up_is_not_called_again() -> None:
    part = Partition()
    part.commit(5000)
    part.feed.advance(5000)
    held, go = threading.Event(), threading.Event()
    calls: list[int] = []

    def take(records: object) -> None:
        calls.append(1)
        held.set()
        assert go.wait(20)

    follower = part.feed.follow(0, take, part.problems.append)
    assert held.wait(20)
    closing = threading.Thread(target=follower.close)
    closing.start()
    go.set()
    closing.join()
    before = len(calls)
    until(lambda: not any(thread.name.startswith("agl-log-catch-up") for thread in threading.enumerate()))
    assert len(calls) == before <= 2 and part.problems == []
