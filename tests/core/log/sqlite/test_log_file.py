"""The log file keeps the contract, is durable, and belongs to one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agentlightning.core.errors import InvalidInput, LogClosed, LogCorrupt, LogLocked
from agentlightning.core.log.interface import Ack, Log
from agentlightning.core.log.sqlite import SqliteLog, check_file
from agentlightning.core.log.sqlite import log as sqlite_log
from agentlightning.core.log.topics import BLOBS, CONTROL, LIVENESS, SPANS

from ..group_contract import GroupContract, poll
from ..log_contract import Answer, Following, LogContract, append, new, until, values

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class TestSqliteLog(LogContract):
    def make_log(self, folder: Path) -> Log:
        return SqliteLog(folder / "log.db")


class TestSqliteGroups(GroupContract):
    def make_log(self, folder: Path) -> Log:
        return SqliteLog(folder / "log.db")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


def child(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Another process that runs `code`, with `SqliteLog`, `append` and `new` at hand."""
    prelude = "import json, os, sys, time\nfrom agentlightning.core.log.sqlite import SqliteLog\n"
    prelude += "from agentlightning.core.log.interface import NewRecord\n"
    prelude += "from agentlightning.core.errors import *\npath = sys.argv[1]\n"
    return subprocess.Popen(
        [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=60)
    return out.strip()


# Durable


def test_durable_a_log_is_what_it_was_after_it_is_opened_again(path: Path) -> None:
    with SqliteLog(path) as log:
        log_id = log.log_id
        append(log, CONTROL, new(1), new(2, headers=(("type", "x"),)))
        append(log, SPANS, new(3, "ro-1"))
        before = list(log.read(CONTROL, 0, 0))
    assert [one.name for one in path.parent.iterdir() if "-" in one.name] == [], "the write-ahead log was put away"
    with SqliteLog(path) as log:
        assert log.log_id == log_id
        assert list(log.read(CONTROL, 0, 0)) == before
        assert values(log.read_key(SPANS, "ro-1")) == [b"3"]
        assert append(log, CONTROL, new(4)) == 2


def test_durable_committed_offsets_survive_the_process(path: Path) -> None:
    with SqliteLog(path) as log:
        append(log, CONTROL, new(1), new(2))
        member = log.join("group", [CONTROL], "me")
        member.poll(10, 0)
        member.commit(CONTROL, 0, 1)
    with SqliteLog(path) as log:
        assert poll(log.join("group", [CONTROL], "me")) == [b"2"]


def test_durable_only_a_batch_of_heartbeats_alone_is_not_synced(path: Path) -> None:
    levels: list[int] = []

    def commit(db: sqlite3.Connection) -> None:
        levels.append(db.execute("PRAGMA synchronous").fetchone()[0])
        db.execute("COMMIT")

    normal, full = 1, 2
    with SqliteLog(path, commit=commit) as log:
        for topic in (CONTROL, LIVENESS, SPANS, LIVENESS, BLOBS):
            append(log, topic, new(1))
        assert levels == [full, normal, full, normal, full]


def test_a_process_that_died_while_it_made_the_file_left_an_empty_log(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
    db.close()
    assert path.stat().st_size > 0
    with SqliteLog(path) as log:
        assert append(log, CONTROL, new(1)) == 0


def test_a_file_without_a_later_topic_gets_it(path: Path) -> None:
    SqliteLog(path).close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE dead_0")
    db.close()
    with SqliteLog(path) as log:
        assert append(log, "dead", new(1)) == 0


def test_the_write_ahead_log_stays_small_under_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_log, "CHECKPOINT_PAGES", 100)
    monkeypatch.setattr(sqlite_log, "RESTART_PAGES", 400)
    with SqliteLog(path) as log:
        for number in range(3000):
            log.append(CONTROL, 0, [new(bytes(10_000))], Answer())
            if number % 20 == 0:
                append(log, CONTROL, new(number))
        append(log, CONTROL, new(0))
        wal = path.with_name("log.db-wal").stat().st_size
        assert path.stat().st_size > 20_000_000 > 2 * wal


def test_a_relative_path_means_the_folder_it_was_opened_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with SqliteLog("a/b/log.db") as log:
        monkeypatch.chdir("/")
        log._reader._idle.clear()  # pyright: ignore[reportPrivateUsage]  # the next question opens the file again
        append(log, CONTROL, new(1))
        assert values(log.read(CONTROL, 0, 0)) == [b"1"]
    assert (tmp_path / "a/b/log.db").is_file()


@pytest.mark.parametrize("name", ["a b.db", "50%25#1.db", "ü.db", "x&mode=rw.db"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    with SqliteLog(tmp_path / name) as log:
        append(log, CONTROL, new(1))
        assert values(log.read(CONTROL, 0, 0)) == [b"1"]
    with SqliteLog.open_readonly(tmp_path / name) as view:
        assert values(view.read(CONTROL, 0, 0)) == [b"1"]
    assert check_file(tmp_path / name).sound


# One writer


def test_a_second_writer_is_told_the_owners_process_and_address(path: Path) -> None:
    with SqliteLog(path) as log:
        code = """
            try:
                SqliteLog(path)
            except LogLocked as error:
                print(json.dumps([error.pid, error.address, str(error)]))
        """
        pid, address, text = json.loads(said(child(code, path)))
        assert (pid, address) == (os.getpid(), None) and str(os.getpid()) in text and str(path) in text
        log.set_address("http://127.0.0.1:4747")
        pid, address, text = json.loads(said(child(code, path)))
        assert (pid, address) == (os.getpid(), "http://127.0.0.1:4747") and address in text
    with SqliteLog(path) as log:
        assert append(log, CONTROL, new(1)) == 0


def test_a_second_writer_of_the_same_process_is_refused_and_does_not_drop_the_lock(path: Path) -> None:
    with SqliteLog(path):
        with pytest.raises(LogLocked) as told:
            SqliteLog(path.parent / "." / "log.db")
        assert told.value.pid == os.getpid()
        code = "try:\n    SqliteLog(path)\nexcept LogLocked:\n    print('locked')\nelse:\n    print('open')"
        assert said(child(code, path)) == "locked"


def test_a_log_that_was_dropped_unclosed_lets_its_file_go(path: Path) -> None:
    import gc

    log = SqliteLog(path)
    append(log, CONTROL, new(1))
    del log

    def opens() -> bool:
        gc.collect()
        try:
            SqliteLog(path).close()
        except LogLocked:
            return False
        return True

    until(opens)


def test_a_log_that_cannot_be_opened_gives_the_lock_back(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(LogCorrupt, match="text file"):
        SqliteLog(path)
    path.unlink()
    SqliteLog(path).close()


@posix
def test_a_forked_child_of_a_killed_owner_does_not_hold_the_file(path: Path) -> None:
    owner = child(
        """
        log = SqliteLog(path)
        forked = os.fork()
        if forked == 0:
            os.close(1)
            time.sleep(60)
            os._exit(0)
        print(forked, flush=True)
        time.sleep(60)
        """,
        path,
    )
    assert owner.stdout is not None
    forked = int(owner.stdout.readline())
    try:
        with pytest.raises(LogLocked) as told:
            SqliteLog(path)
        assert told.value.pid == owner.pid
        owner.kill()
        owner.wait()
        os.kill(forked, 0)
        with SqliteLog(path) as log:
            assert append(log, CONTROL, new(1)) == 0
    finally:
        os.kill(forked, signal.SIGKILL)
        owner.communicate()


@posix
def test_a_forked_child_never_touches_the_file(path: Path) -> None:
    """It is refused everything, and neither its end nor its `close` disturbs the owner."""
    owner = child(
        """
        log = SqliteLog(path)
        acks = []
        log.append("control", 0, [NewRecord("k", b"1", 0)], acks.append)
        while not acks:
            time.sleep(0.001)
        forked = os.fork()
        if forked == 0:
            refused = []
            for call in (
                lambda: log.append("control", 0, [NewRecord("k", b"2", 0)], print),
                lambda: log.read("control", 0, 0),
                lambda: log.read_key("spans", "k"),
                lambda: log.follow("control", 0, 0, print, print),
                lambda: log.join("group", ["control"], "me"),
            ):
                try:
                    call()
                except LogClosed:
                    refused.append(1)
            log.close()
            sys.exit(len(refused))
        code = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
        log.append("control", 0, [NewRecord("k", b"3", 0)], acks.append)
        while len(acks) < 2:
            time.sleep(0.001)
        print(code, [record.value for record in log.read("control", 0, 0)], flush=True)
        sys.stdin.readline()
        log.close()
        """,
        path,
    )
    assert owner.stdout is not None and owner.stdin is not None
    assert owner.stdout.readline().strip() == "5 [b'1', b'3']"
    with pytest.raises(LogLocked):
        SqliteLog(path)
    owner.stdin.write("\n")
    owner.communicate(timeout=30)
    with SqliteLog(path) as log:
        assert values(log.read(CONTROL, 0, 0)) == [b"1", b"3"]
    assert check_file(path).sound


# Looking on


def test_looking_at_a_running_log_follows_what_its_owner_writes(path: Path) -> None:
    with SqliteLog(path) as log:
        append(log, CONTROL, new(0))
        with SqliteLog.open_readonly(path) as view:
            following = Following(view, 0)
            for number in range(1, 50):
                append(log, CONTROL, new(number))
            until(lambda: len(following.records) == 50)
            assert following.offsets() == list(range(50))
            assert view.log_id == log.log_id and view.ends(CONTROL, 0) == (0, 50)
            assert list(view.read(CONTROL, 0, 0)) == following.records
            append(log, SPANS, new(1, "ro-1"))
            assert values(view.read_key(SPANS, "ro-1")) == [b"1"]
            with pytest.raises(InvalidInput):
                view.append(CONTROL, 0, [new(1)], Answer())
            with pytest.raises(InvalidInput):
                view.join("group", [CONTROL], "me")
        until(lambda: following.problems)
        assert isinstance(following.problems[0], LogClosed)
        with pytest.raises(LogClosed):
            view.read(CONTROL, 0, 0)


def test_looking_leaves_nothing_beside_a_file_that_nobody_writes(path: Path) -> None:
    with SqliteLog(path) as log:
        append(log, CONTROL, new(1))
    copy = path.parent / "copy" / "log.db"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    before = copy.read_bytes()
    with SqliteLog.open_readonly(copy) as view:
        assert values(view.read(CONTROL, 0, 0)) == [b"1"]
        assert check_file(copy).sound
    assert [one.name for one in copy.parent.iterdir()] == ["log.db"]
    assert copy.read_bytes() == before


def test_a_look_at_a_stopped_log_goes_on_when_its_owner_starts(path: Path) -> None:
    with SqliteLog(path) as log:
        append(log, CONTROL, new(0))
    with SqliteLog.open_readonly(path) as view:
        following = Following(view, 0)
        until(lambda: following.records)
        for number in range(1, 4):
            with SqliteLog(path) as log:
                append(log, CONTROL, new(number))
                if number == 2:
                    until(lambda: len(following.records) == 3)
        until(lambda: len(following.records) == 4)
        assert values(view.read(CONTROL, 0, 0)) == [b"0", b"1", b"2", b"3"] == values(following.records)


def test_a_copy_with_its_write_ahead_log_can_be_looked_at(path: Path) -> None:
    copy = path.parent / "copy"
    copy.mkdir()
    with SqliteLog(path) as log:
        append(log, CONTROL, *map(new, range(10)))
        for suffix in ("", "-wal"):
            # Through another process: closing a file drops the locks that this process has on it.
            subprocess.run(["cp", f"{path}{suffix}", str(copy)], check=True)
    with SqliteLog.open_readonly(copy / "log.db") as view:
        assert len(view.read(CONTROL, 0, 0)) == 10


def test_a_file_that_was_replaced_ends_the_look(path: Path) -> None:
    with SqliteLog(path) as log:
        append(log, CONTROL, *map(new, range(10)))
    with SqliteLog.open_readonly(path) as view:
        following = Following(view, 0)
        until(lambda: len(following.records) == 10)
        path.unlink()
        other = path.parent / "other.db"
        with SqliteLog(other) as log:
            append(log, CONTROL, *map(new, range(20)))
        os.replace(other, path)
        until(lambda: following.problems)
        assert len(following.records) == 10 and following.problems[0].code in ("offset_lost", "storage_error")


def test_looking_from_beyond_the_end_is_an_offset_lost(path: Path) -> None:
    with SqliteLog(path) as log:
        append(log, CONTROL, new(1))
        with SqliteLog.open_readonly(path) as view:
            following = Following(view, 2)
            until(lambda: following.problems)
            assert following.problems[0].code == "offset_lost"


def test_nothing_to_look_at_is_a_sentence(path: Path) -> None:
    with pytest.raises(InvalidInput, match="no log at"):
        SqliteLog.open_readonly(path)
    assert not path.exists()


def test_acknowledged_means_that_other_processes_see_it(path: Path) -> None:
    with SqliteLog(path) as log:
        append(log, CONTROL, new(1))
        code = "print(len(SqliteLog.open_readonly(path).read('control', 0, 0)))"
        assert said(child(code, path)) == "1"
        answer = Answer()
        log.append(CONTROL, 0, [new(2)], answer)
        assert answer.wait() == Ack(1, 1)
        assert said(child(code, path)) == "2"
