"""What every log promises to the members of its consumer groups."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlightning.core.errors import InvalidInput, LogClosed, LogError
from agentlightning.core.log.interface import Log, Membership
from agentlightning.core.log.topics import CONTROL, DEAD

from .log_contract import PATIENCE_SECONDS, append, new, until, values


def poll(member: Membership, most: int = 100) -> list[bytes]:
    return values(member.poll(most, 0))


class GroupContract:
    """Subclass as `Test...` and give `make_log`; with two or more `partitions`, sharing is tested too."""

    partitions = 1

    def make_log(self, folder: Path) -> Log:
        raise NotImplementedError

    @pytest.fixture
    def log(self, tmp_path: Path) -> Iterator[Log]:
        log = self.make_log(tmp_path)
        yield log
        log.close()

    def places(self, topic: str = CONTROL) -> set[tuple[str, int]]:
        return {(topic, partition) for partition in range(self.partitions)}

    def test_a_member_polls_from_the_start_and_each_record_once(self, log: Log) -> None:
        append(log, CONTROL, *map(new, range(5)))
        member = log.join("group", [CONTROL], "me")
        assert member.assignment() == self.places()
        assert poll(member, 2) == [b"0", b"1"]
        assert poll(member) == [b"2", b"3", b"4"]
        assert poll(member) == []

    def test_a_poll_is_woken_by_an_append(self, log: Log) -> None:
        member = log.join("group", [CONTROL], "me")
        found: list[bytes] = []
        waiting = threading.Thread(target=lambda: found.extend(values(member.poll(10, PATIENCE_SECONDS))))
        waiting.start()
        time.sleep(0.05)
        began = time.monotonic()
        append(log, CONTROL, new(1))
        waiting.join()
        assert found == [b"1"] and time.monotonic() - began < PATIENCE_SECONDS / 2

    def test_committed_offsets_belong_to_the_group_and_the_rest_comes_again(self, log: Log) -> None:
        append(log, CONTROL, *map(new, range(5)))
        member = log.join("group", [CONTROL], "me")
        member.poll(4, 0)
        member.commit(CONTROL, 0, 2)
        member.close()
        with pytest.raises(LogClosed):
            member.poll(1, 0)
        assert poll(log.join("group", [CONTROL], "you")) == [b"2", b"3", b"4"]
        assert len(poll(log.join("another group", [CONTROL], "me"))) == 5

    def test_a_commit_beyond_what_was_polled_or_without_the_partition_is_refused(self, log: Log) -> None:
        append(log, CONTROL, *map(new, range(5)))
        member = log.join("group", [CONTROL], "me")
        member.poll(2, 0)
        with pytest.raises(InvalidInput):
            member.commit(CONTROL, 0, 3)
        with pytest.raises(LogError):
            member.commit(DEAD, 0, 0)
        member.close()
        with pytest.raises(LogError):
            member.commit(CONTROL, 0, 1)

    def test_a_paused_member_keeps_its_partitions_and_takes_nothing(self, log: Log) -> None:
        member = log.join("group", [CONTROL], "me")
        member.pause()
        append(log, CONTROL, new(1))
        assert poll(member) == [] and member.assignment() == self.places()
        found: list[bytes] = []
        waiting = threading.Thread(target=lambda: found.extend(values(member.poll(10, PATIENCE_SECONDS))))
        waiting.start()
        member.resume()
        waiting.join()
        assert found == [b"1"]

    def test_members_share_the_partitions_and_a_leaver_hands_over_what_it_did_not_commit(self, log: Log) -> None:
        if self.partitions < 2:
            pytest.skip("this log has one partition")
        for partition in range(self.partitions):
            append(log, CONTROL, new(partition), new(partition), partition=partition)
        first = log.join("group", [CONTROL], "first")
        assert len(poll(first)) == 2 * self.partitions
        second = log.join("group", [CONTROL], "second")
        theirs = second.assignment()
        # A broker tells the members one after the other, at their next heartbeats.
        until(lambda: first.assignment() | theirs == self.places() and not first.assignment() & theirs)
        assert abs(len(first.assignment()) - len(theirs)) <= 1
        assert poll(first) == []
        assert sorted(poll(second)) == sorted(b"%d" % part for _, part in theirs for _ in range(2))
        kept, lost = sorted(theirs)[0], sorted(theirs)[-1]
        with pytest.raises(LogError):
            first.commit(*lost, 1)
        second.commit(*kept, 2)
        if kept != lost:
            second.commit(*lost, 1)
        second.close()
        until(lambda: first.assignment() == self.places())
        assert sorted(poll(first)) == sorted([b"%d" % lost[1]] if kept != lost else [])

    def test_a_third_member_gets_its_share_and_the_others_lose_as_little_as_possible(self, log: Log) -> None:
        if self.partitions < 3:
            pytest.skip("this log has too few partitions")
        one, two = (log.join("group", [CONTROL], name) for name in "ab")
        before = one.assignment(), two.assignment()
        three = log.join("group", [CONTROL], "c")
        until(lambda: sum(len(member.assignment()) for member in (one, two, three)) == self.partitions)
        sizes = [len(member.assignment()) for member in (one, two, three)]
        assert sum(sizes) == self.partitions and max(sizes) - min(sizes) <= 1
        assert one.assignment() <= before[0] and two.assignment() <= before[1]

    def test_a_member_reads_only_its_topics(self, log: Log) -> None:
        append(log, CONTROL, new(1))
        append(log, DEAD, new(2))
        member = log.join("group", [DEAD], "me")
        assert poll(member) == [b"2"] and member.assignment() == self.places(DEAD)

    def test_a_wrong_membership_is_refused(self, log: Log) -> None:
        member = log.join("group", [CONTROL], "me")
        for wrong in ({"topics": []}, {"topics": ["nothing"]}, {"member_id": "me"}, {"member_id": ""}, {"group": ""}):
            with pytest.raises(InvalidInput):
                log.join(**{"group": "group", "topics": [CONTROL], "member_id": "other", **wrong})  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            member.poll(0, 0)

    def test_closing_the_log_wakes_who_polls(self, tmp_path: Path) -> None:
        log = self.make_log(tmp_path)
        member = log.join("group", [CONTROL], "me")
        told: list[BaseException] = []

        def wait() -> None:
            try:
                member.poll(1, PATIENCE_SECONDS)
            except LogClosed as error:
                told.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.05)
        log.close()
        waiting.join(PATIENCE_SECONDS / 2)
        until(lambda: told)
