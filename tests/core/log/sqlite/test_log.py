"""A disk that fails: no acknowledgement is a lie, and the log goes on when the disk does."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from agentlightning.core.errors import LogError, LogFull, StorageError, UnknownOutcome
from agentlightning.core.log.interface import Ack
from agentlightning.core.log.sqlite import SqliteLog, check_file
from agentlightning.core.log.sqlite.log import commit
from agentlightning.core.log.topics import BLOBS, CONTROL, SPANS

from ..log_contract import Answer, Following, append, new, try_append, until, values


class Disk:
    """What ends a transaction: as it should, or as the next entry of `failures` says."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def __call__(self, db: sqlite3.Connection) -> None:
        failure = self.failures.pop(0) if self.failures else ""
        if failure != "lost":
            commit(db)
        if failure:
            raise sqlite3.OperationalError("disk I/O error")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.mark.parametrize("failure", ["lost", "kept"])
def test_failing_fsync_is_an_unknown_outcome_and_the_file_then_says_which(path: Path, failure: str) -> None:
    disk = Disk()
    with SqliteLog(path, commit=disk) as log:
        append(log, CONTROL, new(0))
        following = Following(log, 0)
        until(lambda: following.records)
        disk.failures = [failure]
        seen: list[list[bytes]] = []
        answer = Answer()

        def look(outcome: Ack | LogError) -> None:
            seen.append(values(log.read(CONTROL, 0, 0)))
            answer(outcome)

        log.append(CONTROL, 0, [new(1), new(2)], look)
        assert isinstance(answer.wait(), UnknownOutcome)
        there = [b"0"] if failure == "lost" else [b"0", b"1", b"2"]
        assert seen == [there], "whoever asks after an unknown outcome reads the truth"
        until(lambda: values(following.records) == there)
        assert append(log, CONTROL, new(3)) == len(there)
        until(lambda: values(following.records) == [*there, b"3"])
        assert following.problems == []
        assert log.ends(CONTROL, 0) == (0, len(there) + 1)
    with SqliteLog(path) as log:
        assert values(log.read(CONTROL, 0, 0)) == [*there, b"3"]


@pytest.mark.parametrize("failure", ["lost", "kept"])
def test_a_failed_commit_concerns_every_append_of_its_batch_and_no_other(path: Path, failure: str) -> None:
    disk = Disk()
    with SqliteLog(path, commit=disk) as log:
        answers = [Answer() for _ in range(6)]

        def busy(db: sqlite3.Connection) -> None:
            for number, answer in enumerate(answers[:5]):
                log.append(SPANS if number % 2 else CONTROL, 0, [new(number)], answer)
            log._commit_hook = disk  # pyright: ignore[reportPrivateUsage]
            disk.failures = [failure]
            commit(db)

        log._commit_hook = busy  # pyright: ignore[reportPrivateUsage]
        log.append(CONTROL, 0, [new(5)], answers[5])
        outcomes = [answer.wait() for answer in answers]
        assert [isinstance(outcome, UnknownOutcome) for outcome in outcomes] == [True] * 5 + [False]
        assert len({id(outcome) for outcome in outcomes}) == 6, "errors that are raised in many threads are not shared"
        assert len(log.read(CONTROL, 0, 0)) + len(log.read(SPANS, 0, 0)) == (1 if failure == "lost" else 6)


def test_after_a_failed_commit_nothing_is_written_until_the_file_is_in_order(path: Path) -> None:
    disk = Disk()
    with SqliteLog(path, commit=disk) as log:
        append(log, CONTROL, new(0))
        looker = sqlite3.connect(path)
        looker.execute("BEGIN")
        looker.execute("SELECT count(*) FROM control_0").fetchall()  # a reader in the way of beginning the WAL anew
        disk.failures = ["kept"]
        connect = log._connect  # pyright: ignore[reportPrivateUsage]

        def impatient() -> tuple[sqlite3.Connection, dict[str, str]]:
            db, meta = connect()
            db.execute("PRAGMA busy_timeout = 10")
            return db, meta

        log._connect = impatient  # type: ignore[method-assign]  # pyright: ignore[reportPrivateUsage]
        assert isinstance(try_append(log, CONTROL, new(1)), UnknownOutcome)
        refused = try_append(log, CONTROL, new(2))
        assert isinstance(refused, StorageError) and not isinstance(refused, UnknownOutcome)
        looker.close()
        assert append(log, CONTROL, new(3)) == 2
        assert values(log.read(CONTROL, 0, 0)) == [b"0", b"1", b"3"]


def test_a_full_disk_is_an_error_and_no_lie(path: Path) -> None:
    SqliteLog(path).close()
    with SqliteLog(path, max_pages=60) as log:
        following = Following(log, 0)
        append(log, CONTROL, new(1))
        full = try_append(log, BLOBS, new(bytes(400_000), "big"))
        assert isinstance(full, LogFull)
        assert append(log, CONTROL, new(2)) == 1, "what still fits is taken"
        assert list(log.read_key(BLOBS, "big")) == [] and log.ends(BLOBS, 0) == (0, 0)
        while True:
            outcome = try_append(log, CONTROL, new(bytes(8000)))
            if isinstance(outcome, LogFull):
                break
        end = log.ends(CONTROL, 0)[1]
        assert len(log.read(CONTROL, 0, 0)) == end == len(following.records)
    with SqliteLog(path) as log:
        assert append(log, CONTROL, new(3)) == end, "there is room again"
    assert check_file(path).sound


def test_a_batch_that_fails_before_its_commit_is_not_written_and_the_next_one_is(path: Path) -> None:
    with SqliteLog(path) as log:
        append(log, CONTROL, new(0))
        log._ends[CONTROL] = 0  # pyright: ignore[reportPrivateUsage]  # the offset is taken: the INSERT fails
        refused = try_append(log, CONTROL, new(1))
        assert isinstance(refused, StorageError)
        assert append(log, CONTROL, new(2)) == 1, "the next offset was read from the file again"
        assert values(log.read(CONTROL, 0, 0)) == [b"0", b"2"]


def in_a_child(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    prelude = """
        import os, resource, signal, sys, threading
        from agentlightning.core.log.sqlite import SqliteLog
        from agentlightning.core.log.interface import NewRecord
        def send(log, size, topic="control"):
            told, ready = [], threading.Event()
            log.append(topic, 0, [NewRecord("k", os.urandom(size), 0)], lambda ack: (told.append(ack), ready.set()))
            assert ready.wait(30)
            return type(told[0]).__name__
        path = sys.argv[1]
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_disk_that_refuses_at_the_commit_is_unknown_and_the_log_serves_again_when_it_can(path: Path) -> None:
    """The operating system's own refusal: a limit on the size of files, lifted later."""
    done = in_a_child(
        """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = SqliteLog(path)
        before = [send(log, 2000) for _ in range(10)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
        during = [send(log, 300_000), send(log, 300_000)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        after = [send(log, 2000) for _ in range(10)]
        print(set(before), during, set(after), log.ends("control", 0)[1] == len(log.read("control", 0, 0)))
        log.close()
        """,
        path,
    )
    before, rest = done.stdout.split(" [", 1)
    assert before == "{'Ack'}", done.stderr
    during, after = rest.split("] ")
    assert "UnknownOutcome" in during and "Ack" not in during
    assert after.strip() == "{'Ack'} True"
    report = check_file(path)
    assert report.sound and report.records[CONTROL] >= 20


def test_a_fault_in_the_committer_is_told_as_unknown_and_ends_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SqliteLog(path) as log:
        append(log, CONTROL, new(0))
        whole: Callable[..., object] = SqliteLog._commit  # pyright: ignore[reportPrivateUsage]

        def broken(*_: object) -> object:
            raise ZeroDivisionError

        monkeypatch.setattr(SqliteLog, "_commit", broken)
        assert isinstance(try_append(log, CONTROL, new(1)), UnknownOutcome)
        monkeypatch.setattr(SqliteLog, "_commit", whole)
        assert append(log, CONTROL, new(2)) == 1
    assert os.path.exists(path)
