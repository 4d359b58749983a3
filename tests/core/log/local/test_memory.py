"""The memory log keeps the contract of logs and of groups, and leaves no thread behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import pytest

from agentlightning.core.errors import LogClosed, LogError, LogFull
from agentlightning.core.log.interface import Log
from agentlightning.core.log.local import consumer_group
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL, DEAD

from ..group_contract import GroupContract, poll
from ..log_contract import Answer, LogContract, append, new, until


class TestMemoryLog(LogContract):
    def make_log(self, folder: Path) -> Log:
        return MemoryLog()


class TestMemoryGroups(GroupContract):
    def make_log(self, folder: Path) -> Log:
        return MemoryLog()


def test_a_log_that_was_dropped_unclosed_ends_its_thread() -> None:
    log = MemoryLog()
    name = f"agl-log-{log.log_id[:6]}"
    append(log, CONTROL, new(1))
    assert name in [thread.name for thread in threading.enumerate()]
    del log
    gc.collect()
    until(lambda: name not in [thread.name for thread in threading.enumerate()])


def test_what_waits_for_the_committer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning.core.log.local.group_commit.QUEUED_BYTES", 1000)
    with MemoryLog() as log:
        held, block = threading.Event(), Answer()
        log.append(CONTROL, 0, [new(0)], lambda ack: (held.wait(20), block(ack)) and None)
        answers = [Answer() for _ in range(4)]
        for answer in answers:
            log.append(CONTROL, 0, [new(b"x" * 300)], answer)
        held.set()
        outcomes = [answer.wait() for answer in answers]
        assert [isinstance(outcome, LogFull) for outcome in outcomes] == [False, False, True, True]
        assert append(log, CONTROL, new(1)) == 3


def test_a_silent_member_gives_way_and_comes_back_with_its_next_poll() -> None:
    with MemoryLog() as log:
        groups = consumer_group.Groups(log, session_seconds=0.2)
        silent, busy = groups.join("group", [CONTROL], "silent"), groups.join("group", [CONTROL], "busy")
        append(log, CONTROL, new(1))
        assert poll(silent) == [b"1"]
        began = time.monotonic()
        assert [record.value for record in busy.poll(10, 20)] == [b"1"]
        assert time.monotonic() - began < 10
        assert len(busy.assignment()) == 1 and not silent.assignment()
        with pytest.raises(LogError):
            silent.commit(CONTROL, 0, 0)
        assert poll(silent) == []
        busy.close()
        assert poll(silent) == [b"1"]


def test_a_member_that_polls_for_long_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    deals: list[str] = []
    deal = consumer_group.Groups._deal  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(consumer_group.Groups, "_deal", lambda groups, group: (deals.append(group), deal(groups, group)))
    with MemoryLog() as log:
        groups = consumer_group.Groups(log, session_seconds=0.2)
        first, second = groups.join("group", [CONTROL], "first"), groups.join("group", [CONTROL], "second")
        polls = [threading.Thread(target=member.poll, args=(1, 0.6)) for member in (first, second)]
        for thread in polls:
            thread.start()
        for thread in polls:
            thread.join()
        assert len(deals) == 2, "nobody was put out"


def test_topics_are_shared_out_and_stay_with_whoever_has_them() -> None:
    with MemoryLog() as log:
        for topic in (CONTROL, DEAD):
            append(log, topic, new(1))
        first = log.join("group", [CONTROL, DEAD], "first")
        assert first.assignment() == {(CONTROL, 0), (DEAD, 0)} and len(first.poll(10, 0)) == 2
        second = log.join("group", [CONTROL, DEAD], "second")
        assert second.assignment() == set(), "who reads a topic goes on with it"
        first.commit(CONTROL, 0, 1)
        third = log.join("group", [DEAD], "third")
        first.close()
        assert second.assignment() == {(CONTROL, 0)} and third.assignment() == {(DEAD, 0)}
        assert poll(second) == [] and poll(third) == [b"1"], "what was not committed is read again"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_refused() -> None:
    log = MemoryLog()
    append(log, CONTROL, new(1))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            log.append(CONTROL, 0, [new(2)], Answer())
        except LogClosed:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert append(log, CONTROL, new(2)) == 1
    log.close()
