"""What every log promises: one suite that each backend runs by giving `make_log`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from msgspec import structs

from agentlightning.core.errors import InvalidInput, LogClosed, LogError, OffsetLost, StorageError
from agentlightning.core.log.interface import EVERYWHERE, Ack, Done, Headers, KeyRange, Log, NewRecord, Record
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL, LIVENESS, SPANS, TASKS, partition_of

PATIENCE_SECONDS = 20.0


def new(value: bytes | int, key: str = "default", headers: Headers = ()) -> NewRecord:
    return NewRecord(key, value if isinstance(value, bytes) else b"%d" % value, 1_700_000_000_000_000, headers)


class Answer:
    """Collects what `done` is told, and by which thread."""

    def __init__(self) -> None:
        self.outcomes: list[Ack | LogError] = []
        self.threads: list[int] = []
        self._told = threading.Event()

    def __call__(self, outcome: Ack | LogError) -> None:
        self.outcomes.append(outcome)
        self.threads.append(threading.get_ident())
        self._told.set()

    def wait(self) -> Ack | LogError:
        assert self._told.wait(PATIENCE_SECONDS), "no answer"
        return self.outcomes[0]


def append(log: Log, topic: str, *records: NewRecord, partition: int = 0) -> int:
    """Append, wait, and return the base offset."""
    outcome = try_append(log, topic, *records, partition=partition)
    assert isinstance(outcome, Ack), outcome
    assert outcome.count == len(records)
    return outcome.base_offset


def try_append(log: Log, topic: str, *records: NewRecord, partition: int = 0) -> Ack | LogError:
    answer = Answer()
    log.append(topic, partition, records, answer)
    return answer.wait()


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, which other threads bring about."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def values(records: Sequence[Record]) -> list[bytes]:
    return [record.value for record in records]


class Following:
    """A follower that keeps everything it is told."""

    def __init__(self, log: Log, offset: int, topic: str = CONTROL) -> None:
        self.records: list[Record] = []
        self.problems: list[LogError] = []
        self.subscription = log.follow(topic, 0, offset, self._take, self.problems.append)

    def _take(self, records: Sequence[Record]) -> None:
        self.records.extend(records)

    def offsets(self) -> list[int]:
        return [record.offset for record in self.records]


class LogContract:
    """Subclass as `Test...` and give `make_log`; `partitions` says how many every topic of it has."""

    partitions = 1

    def make_log(self, folder: Path) -> Log:
        raise NotImplementedError

    @pytest.fixture
    def log(self, tmp_path: Path) -> Iterator[Log]:
        log = self.make_log(tmp_path)
        yield log
        log.close()

    # Appending and reading

    def test_an_append_is_answered_once_by_another_thread_with_consecutive_offsets(self, log: Log) -> None:
        first, second = Answer(), Answer()
        log.append(CONTROL, 0, [new(1), new(2), new(3)], first)
        log.append(CONTROL, 0, [new(4)], second)
        assert (first.wait(), second.wait()) == (Ack(0, 3), Ack(3, 1))
        append(log, CONTROL, new(5))
        assert len(first.outcomes) == len(second.outcomes) == 1
        assert threading.get_ident() not in first.threads + second.threads

    def test_what_is_read_is_what_was_appended(self, log: Log) -> None:
        written = [
            NewRecord("", b"", 0),
            NewRecord("ключ \x00 🔑", bytes(range(256)), -1, (("type", "x"), ("", "ü"), ("type", "again"))),
            NewRecord("k" * 5000, b"v" * 3_000_000, (1 << 63) - 1),
        ]
        append(log, CONTROL, *written)
        found = log.read(CONTROL, 0, 0)
        assert found == [
            Record(CONTROL, 0, offset, one.key, one.value, one.timestamp_us, one.headers)
            for offset, one in enumerate(written)
        ]
        assert values(log.read(CONTROL, 0, 0, headers=False)) == values(found)

    def test_reading_goes_in_pages_and_finds_nothing_at_the_end(self, log: Log) -> None:
        append(log, CONTROL, *map(new, range(10)))
        assert [record.offset for record in log.read(CONTROL, 0, 3, 4)] == [3, 4, 5, 6]
        assert [record.offset for record in log.read(CONTROL, 0, 8, 4)] == [8, 9]
        assert list(log.read(CONTROL, 0, 10, 4)) == []
        assert list(log.read(SPANS, 0, 0)) == []

    def test_ends_are_the_first_offset_and_the_next(self, log: Log) -> None:
        assert log.ends(CONTROL, 0) == (0, 0)
        append(log, CONTROL, new(1), new(2))
        assert log.ends(CONTROL, 0) == (0, 2)
        assert log.ends(SPANS, 0) == (0, 0)

    def test_an_append_with_thousands_of_records_is_one(self, log: Log) -> None:
        assert append(log, CONTROL, *map(new, range(5000))) == 0
        assert log.ends(CONTROL, 0) == (0, 5000)
        assert values(log.read(CONTROL, 0, 4990)) == [b"%d" % number for number in range(4990, 5000)]

    def test_answers_come_in_the_order_of_the_appends(self, log: Log) -> None:
        order: list[int] = []
        last = Answer()
        for number in range(500):
            log.append(CONTROL, 0, [new(number)], lambda _, number=number: order.append(number))
        log.append(CONTROL, 0, [new(500)], last)
        last.wait()
        assert order == list(range(500))
        assert values(log.read(CONTROL, 0, 0)) == [b"%d" % number for number in range(501)]

    def test_many_writers_leave_no_hole_and_each_keeps_its_order(self, log: Log) -> None:
        answers = [[Answer() for _ in range(100)] for _ in range(8)]

        def write(writer: int) -> None:
            for number in range(100):
                log.append(CONTROL, 0, [new(number, f"w{writer}")], answers[writer][number])

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        acks = [answer.wait() for of_writer in answers for answer in of_writer]
        assert sorted(ack.base_offset for ack in acks if isinstance(ack, Ack)) == list(range(800))
        found = log.read(CONTROL, 0, 0)
        for writer in range(8):
            assert values([one for one in found if one.key == f"w{writer}"]) == [b"%d" % n for n in range(100)]

    def test_an_append_may_come_from_inside_an_answer(self, log: Log) -> None:
        last = Answer()
        log.append(CONTROL, 0, [new(1)], lambda _: log.append(CONTROL, 0, [new(2)], last))
        assert last.wait() == Ack(1, 1)

    def test_a_callback_that_raises_does_not_end_the_log(self, log: Log) -> None:
        def broken(outcome: Ack | LogError) -> None:
            raise ZeroDivisionError

        log.append(CONTROL, 0, [new(1)], broken)
        assert append(log, CONTROL, new(2)) == 1

    @pytest.mark.parametrize(
        "records",
        [
            [],
            [NewRecord("k", "text", 0)],  # type: ignore[arg-type]
            [NewRecord(None, b"", 0)],  # type: ignore[arg-type]
            [NewRecord("\ud800", b"", 0)],
            [NewRecord("k", b"", 1 << 63)],
            [NewRecord("k", b"", 0, (("only one",),))],  # type: ignore[arg-type]
            [NewRecord("k", b"", 0, (("name", 1),))],  # type: ignore[arg-type]
            [NewRecord("k", b"", 0, (("name", "\udfff"),))],
            [NewRecord("k", b"good", 0), NewRecord("k", bytearray(b"no"), 0)],  # type: ignore[arg-type]
        ],
    )
    def test_what_cannot_be_stored_is_refused_at_once_and_leaves_nothing(
        self, log: Log, records: list[NewRecord]
    ) -> None:
        answer = Answer()
        with pytest.raises(InvalidInput):
            log.append(CONTROL, 0, records, answer)
        assert append(log, CONTROL, new(1)) == 0
        assert answer.outcomes == []

    def test_unknown_places_are_refused(self, log: Log) -> None:
        assert log.partitions(CONTROL) == self.partitions
        for topic, partition in (("nothing", 0), (TASKS, 0), (CONTROL, -1), (CONTROL, self.partitions)):
            with pytest.raises(InvalidInput):
                log.append(topic, partition, [new(1)], Answer())
            with pytest.raises(InvalidInput):
                log.read(topic, partition, 0)
            with pytest.raises(InvalidInput):
                log.ends(topic, partition)
            with pytest.raises(InvalidInput):
                log.follow(topic, partition, 0, print, print)
        with pytest.raises(InvalidInput):
            log.partitions("nothing")
        with pytest.raises(InvalidInput):
            log.read(CONTROL, 0, -1)

    def test_every_log_has_an_id_of_its_own(self, log: Log, tmp_path: Path) -> None:
        with self.make_log(tmp_path / "other") as other:
            assert log.log_id and other.log_id and log.log_id != other.log_id

    # Keys

    def test_the_records_of_a_key_come_in_order_and_after_an_offset(self, log: Log) -> None:
        place = partition_of("a", self.partitions)
        for number in range(6):
            append(log, SPANS, new(number, "a" if number % 2 == 0 else "b"), partition=place)
        assert values(log.read_key(SPANS, "a")) == [b"0", b"2", b"4"]
        assert values(log.read_key(SPANS, "a", after=0)) == [b"2", b"4"]
        assert values(log.read_key(SPANS, "a", after=1, max_records=1)) == [b"2"]
        assert list(log.read_key(SPANS, "a", after=4)) == []
        assert list(log.read_key(SPANS, "c")) == []
        with pytest.raises(InvalidInput):
            log.read_key(CONTROL, "a")

    def test_a_compacted_topic_keeps_the_newest_of_each_key_at_its_offset(self, log: Log) -> None:
        place = partition_of("a", self.partitions)
        others = [key for key in map(str, range(50)) if partition_of(key, self.partitions) == place][:2]
        for number in range(200):
            append(log, LIVENESS, new(number, "a"), new(number, others[number % 2]), partition=place)
        assert values(log.read_key(LIVENESS, "a")) == [b"199"]
        assert [record.offset for record in log.read_key(LIVENESS, others[0])] == [397]
        first, end = log.ends(LIVENESS, place)
        left = log.read(LIVENESS, place, first)
        assert [record.offset for record in left] == [397, 398, 399]
        assert end == 400
        assert [record.offset for record in log.read(LIVENESS, place, 0, 2)] == [397, 398]
        assert append(log, LIVENESS, new(1, "a"), partition=place) == 400

    # Following

    def test_a_follower_gets_everything_once_and_in_order_while_others_write(self, log: Log) -> None:
        append(log, CONTROL, *map(new, range(3000)))
        early = Following(log, 0)
        middles: list[Following] = []
        for number in range(3000, 3400):
            if number % 100:
                log.append(CONTROL, 0, [new(number)], Answer())
            else:
                append(log, CONTROL, new(number))
                middles.append(Following(log, number - 50))
        append(log, CONTROL, new(3400))
        until(lambda: len(early.records) == 3401)
        assert early.offsets() == list(range(3401))
        assert values(early.records) == [b"%d" % number for number in range(3401)]
        for index, middle in enumerate(middles):
            start = 3000 + 100 * index - 50
            until(lambda middle=middle, start=start: len(middle.records) == 3401 - start)
            assert middle.offsets() == list(range(start, 3401))

    def test_followed_records_carry_their_headers(self, log: Log) -> None:
        headers = (("type", "x"),)
        append(log, CONTROL, new(1, headers=headers))
        following = Following(log, 0)
        until(lambda: following.records)
        append(log, CONTROL, new(2, headers=headers))
        until(lambda: len(following.records) == 2)
        assert [record.headers for record in following.records] == [headers, headers]
        assert list(log.read(CONTROL, 0, 0)) == following.records

    def test_a_closed_follower_is_not_called_again(self, log: Log) -> None:
        closed, other = Following(log, 0), Following(log, 0)
        append(log, CONTROL, new(1))
        until(lambda: closed.records)
        closed.subscription.close()
        append(log, CONTROL, new(2))
        until(lambda: len(other.records) == 2)
        assert len(closed.records) == 1 and closed.problems == []

    def test_a_follower_may_close_itself(self, log: Log) -> None:
        got: list[Record] = []
        ready = threading.Event()

        def take(records: Sequence[Record]) -> None:
            assert ready.wait(PATIENCE_SECONDS)
            got.extend(records)
            subscription.close()

        subscription = log.follow(CONTROL, 0, 0, take, lambda _: None)
        ready.set()
        append(log, CONTROL, new(1))
        append(log, CONTROL, new(2))
        until(lambda: got)
        append(log, CONTROL, new(3))
        assert values(got)[:1] == [b"1"] and len(got) < 3

    def test_a_follower_that_raises_is_told_and_disturbs_nobody(self, log: Log) -> None:
        problems: list[LogError] = []
        calls: list[int] = []

        def broken(records: Sequence[Record]) -> None:
            calls.append(len(records))
            raise ZeroDivisionError("oh")

        log.follow(CONTROL, 0, 0, broken, problems.append)
        other = Following(log, 0)
        append(log, CONTROL, new(1))
        append(log, CONTROL, new(2))
        until(lambda: len(other.records) == 2 and problems)
        assert len(calls) == 1 and len(problems) == 1
        assert isinstance(problems[0], StorageError)

    def test_following_from_beyond_the_end_is_an_offset_lost(self, log: Log) -> None:
        append(log, CONTROL, new(1))
        following = Following(log, 2)
        until(lambda: following.problems)
        append(log, CONTROL, new(2), new(3))
        assert [type(problem) for problem in following.problems] == [OffsetLost]
        assert following.records == []

    def test_a_follower_of_a_compacted_topic_skips_what_was_replaced(self, log: Log) -> None:
        for number in range(20):
            append(log, LIVENESS, new(number, "worker"))
        following = Following(log, 5, LIVENESS)
        until(lambda: following.records)
        append(log, LIVENESS, new(20, "worker"))
        until(lambda: len(following.records) == 2)
        assert following.offsets() == [19, 20] and following.problems == []

    # Closing

    def test_close_finishes_what_is_under_way_and_then_refuses(self, tmp_path: Path) -> None:
        log = self.make_log(tmp_path)
        following = Following(log, 0)
        answers = [Answer() for _ in range(300)]
        for number, answer in enumerate(answers):
            log.append(CONTROL, 0, [new(number)], answer)
        log.close()
        assert [answer.outcomes for answer in answers] == [[Ack(number, 1)] for number in range(300)]
        assert following.offsets() == list(range(300))
        assert [type(problem) for problem in following.problems] == [LogClosed]
        late = Answer()
        log.append(CONTROL, 0, [new(1)], late)
        assert isinstance(late.wait(), LogClosed)
        assert threading.get_ident() not in late.threads
        with pytest.raises(LogClosed):
            log.read(CONTROL, 0, 0)
        with pytest.raises(LogClosed):
            log.follow(CONTROL, 0, 0, print, print)
        with pytest.raises(LogClosed):
            log.join("group", [CONTROL], "me")
        log.close()

    def test_every_append_is_answered_while_somebody_closes(self, tmp_path: Path) -> None:
        for round_ in range(5):
            log = self.make_log(tmp_path / str(round_))
            answers = [Answer() for _ in range(400)]
            closing = threading.Thread(target=log.close)
            for number, answer in enumerate(answers):
                if number == 50 * round_:
                    closing.start()
                log.append(CONTROL, 0, [new(number)], answer)
            outcomes = [answer.wait() for answer in answers]
            closing.join()
            written = [isinstance(outcome, Ack) for outcome in outcomes]
            assert written == sorted(written, reverse=True)
            assert all(isinstance(outcome, Ack | LogClosed) for outcome in outcomes)

    def test_staged_records_are_taken_once_and_appended_together(self, tmp_path: Path) -> None:
        with self.make_log(tmp_path) as log:
            answer, none, taken = Answer(), Answer(), [0]

            def take() -> list[NewRecord]:
                taken[0] += 1
                return [new(1), new(2)]

            log.append_staged(CONTROL, 0, take, answer)
            assert answer.wait() == Ack(0, 2) and taken == [1]
            log.append_staged(CONTROL, 0, list, none)
            assert none.wait() == Ack(-1, 0)
            assert values(log.read(CONTROL, 0, 0)) == [b"1", b"2"]


class SpreadLog(MemoryLog):
    """A log whose topics have several partitions, as on a broker: each is a memory log of its own."""

    def __init__(self, partitions: int) -> None:
        self._inner = [MemoryLog() for _ in range(partitions)]
        super().__init__()

    def partitions(self, topic: str) -> int:
        return len(self._inner)

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        self._inner[partition].append(topic, 0, records, done)

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        found = self._inner[partition].read(topic, 0, offset, max_records, headers=headers)
        return [structs.replace(record, partition=partition) for record in found]

    def read_key(
        self, topic: str, key: str, *, after: int = -1, max_records: int | None = None, within: KeyRange = EVERYWHERE
    ) -> Sequence[Record]:
        place = partition_of(key, len(self._inner))
        found = self._inner[place].read_key(topic, key, after=after, max_records=max_records, within=within)
        return [structs.replace(record, partition=place) for record in found]

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        return self._inner[partition].ends(topic, 0)

    def close(self) -> None:
        super().close()
        for log in self._inner:
            log.close()
