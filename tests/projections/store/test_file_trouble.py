"""Bad luck with the file: a COMMIT that fails, a disk that is full, a second writer, snapshots over restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.errors import LogError, LogLocked, PayloadTooLarge, Rebuilding, StorageError
from agentlightning.core.fold.apply import fold
from agentlightning.core.log.sqlite import SqliteLog
from agentlightning.core.log.topics import BLOBS
from agentlightning.projections.archive.index import ArchiveIndex
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store

from .tools import begin, claim, control_values, ids, span


class Commits:
    """COMMIT that fails now and then: before it took effect, or after."""

    def __init__(self) -> None:
        self.every, self.number, self.failed = 0, 0, 0

    def __call__(self, db: sqlite3.Connection) -> None:
        self.number += 1
        turn = self.number % self.every if self.every else -1
        if turn == 0:
            self.failed += 1
            raise sqlite3.OperationalError("disk I/O error")
        db.execute("COMMIT")
        if turn == 1:
            self.failed += 1
            raise sqlite3.OperationalError("disk I/O error, and yet it is there")


async def test_30_a_failed_commit_is_unknown_and_the_verdict_answers(tmp_path: Path) -> None:
    commits = Commits()
    path = tmp_path / "log.db"
    with EventLogStore(SqliteLog(path, commit=commits)) as store:
        commits.every = 4
        made = [await store.enqueue_rollout(number) for number in range(20)]
        claimed = [await claim(store) for _ in made]
        await asyncio.gather(
            *(store.update_attempt(one.rollout_id, one.attempt.attempt_id, status="succeeded") for one in claimed)
        )
        assert commits.failed > 10
        assert ids(claimed) == ids(made)
        commits.every = 0
        before, printed = list(await store.query_rollouts()), store.fingerprint()
    assert [one.status for one in before] == ["succeeded"] * 20, "each command took effect once"
    with open_store(f"sqlite:///{path}") as store:  # type: ignore[attr-defined]
        assert list(await store.query_rollouts()) == before and store.fingerprint() == printed


async def test_30_a_commit_that_never_works_is_an_error_to_the_caller(tmp_path: Path) -> None:
    commits = Commits()
    with EventLogStore(SqliteLog(tmp_path / "log.db", commit=commits)) as store:
        await store.enqueue_rollout("kept")
        commits.every = 1
        with pytest.raises(LogError):
            await asyncio.wait_for(store.enqueue_rollout("lost"), 10)
        commits.every = 0
        await store.enqueue_rollout("kept too")
        assert [one.input for one in await store.query_rollouts()] == ["kept", "kept too"]


async def test_a_full_disk_is_an_error_to_the_caller_and_no_lie_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    acknowledged: list[str] = []
    refused = 0
    log = SqliteLog(path, max_pages=120)
    with EventLogStore(log) as store:
        attempted = await begin(store)
        acknowledged.append(attempted.rollout_id)
        for number in range(60):
            try:
                acknowledged.append((await store.enqueue_rollout(str(number) * 20_000)).rollout_id)
            except StorageError as error:
                refused += 1
                assert "room" in str(error)
        assert refused > 20 and len(acknowledged) > 3
        spans: list[str] = []
        for _ in range(20):
            try:
                stored = await store.add_span(span(attempted, attributes={"x": "y" * 20_000}))
                assert stored is not None
                spans.append(stored.span_id)
            except StorageError:
                refused += 1
        assert ids(await store.query_rollouts()) == acknowledged
        assert [one.span_id for one in await store.query_spans(attempted.rollout_id)] == spans
        assert (await store.statistics()).get("total_spans") == len(spans)
        printed = store.fingerprint()
    with open_store(f"sqlite:///{path}") as store:  # type: ignore[attr-defined]
        assert store.fingerprint() == printed
        assert ids(await store.query_rollouts()) == acknowledged
        await store.enqueue_rollout("there is room again")


_OPEN = """
import sys
from agentlightning.rest.open_store import open_store
try:
    open_store(f"sqlite:///{sys.argv[1]}").close()
    print("opened")
except Exception as error:
    print(type(error).__name__, error)
"""


def try_to_open(path: Path) -> str:
    """What another process is told."""
    told = subprocess.run([sys.executable, "-c", _OPEN, str(path)], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def test_31_a_second_writer_is_refused_with_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with open_store(f"sqlite:///{path}"):  # type: ignore[attr-defined]
        assert try_to_open(path).startswith("LogLocked") and str(os.getpid()) in try_to_open(path)
        with pytest.raises(LogLocked) as refused:
            open_store(f"sqlite:///{path}")
        assert refused.value.pid == os.getpid()
        assert try_to_open(path).startswith("LogLocked"), "refusing one in this process does not let others in"
    assert try_to_open(path) == "opened"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked on POSIX only")
def test_31_a_forked_child_that_outlives_its_killed_owner_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    program = """
import os, sys, time
from agentlightning.rest.open_store import open_store
store = open_store(f"sqlite:///{sys.argv[1]}")
child = os.fork()
if child == 0:
    time.sleep(30)
    os._exit(0)
os.write(1, f"{child}\\n".encode())
time.sleep(30)
"""
    owner = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        assert try_to_open(path).startswith("LogLocked")
        owner.kill()
        owner.wait()
        assert try_to_open(path) == "opened"
    finally:
        os.kill(child, signal.SIGKILL)
        owner.stdout.close()


@pytest.mark.parametrize("lost", ["", "index", "half the index"])
async def test_a_store_restarts_from_a_snapshot_as_from_the_log(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "log.db"
    settings = StoreSettings(snapshot_every=40, archive_after=10)

    def opened() -> Any:
        return open_store(f"sqlite:///{path}", settings=settings)

    with opened() as store:
        for number in range(60):
            attempted = await begin(store)
            if number % 5:
                await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
        everything, printed = list(await store.query_rollouts()), store.fingerprint()
        values = control_values(store.engine.log)
    if lost:
        (index,) = [one for one in tmp_path.iterdir() if one.name.endswith(".index")]
        if lost == "index":
            for one in tmp_path.glob("*.index*"):
                one.unlink()
        else:
            with sqlite3.connect(index) as db:
                db.execute("DELETE FROM rollouts WHERE number > 20")
                db.execute("UPDATE meta SET value = '70' WHERE key = 'position'")
    with opened() as store:
        assert store.report()["from_snapshot"] > 100 and (store.engine.backfill is None) == (not lost)
        assert store.fingerprint() == printed and list(await store.query_rollouts()) == everything
    assert fold(values).fingerprint.hex() == printed[1]


async def test_large_payloads_go_by_reference_and_too_large_ones_are_refused() -> None:
    with InMemoryLightningStore(settings=StoreSettings(max_payload_mb=2)) as store:
        rollout = await store.enqueue_rollout({"text": "x" * 1_000_000}, metadata={"text": "y" * 1_000_000})
        kept = await store.get_rollout_by_id(rollout.rollout_id)
        assert kept is not None and kept.input == {"text": "x" * 1_000_000}
        assert all(len(value) < 2_000 for value in control_values(store.engine.log))
        assert store.engine.log.ends(BLOBS, 0)[1] == 2
        attempted = await claim(store)
        before = store.fingerprint()
        big = "x" * 2_100_000
        for call in (
            lambda: store.enqueue_rollout(big),
            lambda: store.start_rollout(big),
            lambda: store.update_rollout(rollout.rollout_id, input=big),
            lambda: store.update_attempt(rollout.rollout_id, "latest", metadata={"big": big}),
            lambda: store.add_resources({"p": big}),
            lambda: store.add_span(span(attempted, attributes={"big": big})),
            lambda: store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=one) for one in ("small", big)]),
        ):
            with pytest.raises(PayloadTooLarge, match="2 MB") as refused:
                await call()
            assert refused.value.limit == 2_000_000
        assert store.fingerprint() == before
    with InMemoryLightningStore() as store:
        with pytest.raises(PayloadTooLarge, match="64 MB"):
            await store.enqueue_rollout(b"x" * 64_100_000)


ARCHIVING = StoreSettings(snapshot_every=40, archive_after=10)


def archiving(path: Path) -> Any:
    return open_store(f"sqlite:///{path}", settings=ARCHIVING)


async def finish(store: Any, count: int, name: str) -> None:
    for number in range(count):
        attempted = await store.start_rollout(f"{name} {number}")
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")


def copied(path: Path, folder: Path) -> Path:
    """A copy of the log alone, as it is after the store was closed."""
    folder.mkdir()
    return Path(shutil.copy(path, folder / path.name))


@pytest.mark.parametrize("then", ["nothing", "another history"])
async def test_an_index_that_is_ahead_of_its_log_or_of_another_history_is_made_anew(tmp_path: Path, then: str) -> None:
    path = tmp_path / "log.db"
    with archiving(path) as store:
        await finish(store, 40, "kept")
    backup = copied(path, tmp_path / "backup")
    with archiving(path) as store:
        await finish(store, 40, "lost")
        store.engine.snapshot()
    shutil.copy(backup, path)  # only the log is put back
    if then == "another history":
        os.rename(f"{path}.index", tmp_path / "ahead")
        with archiving(path) as store:
            await finish(store, 60, "instead")
        os.replace(tmp_path / "ahead", f"{path}.index")
    with archiving(path) as store:
        await store.engine.indexed()
        found = await store.query_rollouts()
        inputs = [one.input for one in found]
        wanted = [f"kept {number}" for number in range(40)]
        wanted += [f"instead {number}" for number in range(60)] if then == "another history" else []
        assert inputs == wanted and found.total == len(wanted)
        everything = list(found)
        assert store.engine.backfill is not None or store.report()["from_snapshot"] == 0
    with archiving(path) as store:
        assert store.engine.backfill is None and store.report()["from_snapshot"] > 0, "the new index fits"
        assert list(await store.query_rollouts()) == everything


def garble(index: Path) -> None:
    index.write_bytes(b"no database at all" * 400)


def tear(index: Path) -> None:
    content = bytearray(index.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    index.write_bytes(content)


def folder(index: Path) -> None:
    index.unlink()
    index.mkdir()


def link(index: Path) -> None:
    index.rename(index.with_name("elsewhere"))
    index.symlink_to(index.with_name("elsewhere"))


def _sql(statement: str) -> Callable[[Path], None]:
    def run(index: Path) -> None:
        with contextlib.closing(sqlite3.connect(index)) as db, db:
            db.execute(statement)

    return run


DAMAGE: dict[str, Callable[[Path], None]] = {
    "garbage": garble,
    "torn pages": tear,
    "half of it": lambda index: os.truncate(index, index.stat().st_size // 2),
    "a folder": folder,
    "a link": link,
    "a trigger": _sql("CREATE TRIGGER t AFTER INSERT ON rollouts BEGIN DELETE FROM bodies; END"),
    "a text as position": _sql("UPDATE meta SET value = 'far' WHERE key = 'position'"),
    "a lost row": _sql("DELETE FROM rollouts WHERE number = 3"),
    "a lost body": _sql("DELETE FROM bodies WHERE number = 3"),
    "a table that is gone": _sql("DROP TABLE bodies"),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_an_index_that_cannot_be_read_is_made_anew_and_stops_nothing(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "log.db"
    with archiving(path) as store:
        await finish(store, 40, "task")
        everything = list(await store.query_rollouts())
    DAMAGE[damage](Path(f"{path}.index"))
    with archiving(path) as store:
        assert list(await store.query_rollouts()) == everything
        await store.update_rollout(everything[0].rollout_id, status="queuing")
        await finish(store, 20, "more")
        assert len(await store.query_rollouts()) == 60
        everything = list(await store.query_rollouts())
    if damage == "a link":
        assert not Path(f"{path}.index").is_symlink()
    with archiving(path) as store:
        assert list(await store.query_rollouts()) == everything


@pytest.mark.parametrize("damage", ["altered", "unreadable"])
async def test_an_index_that_is_damaged_while_it_is_used_is_made_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "log.db"
    with archiving(path) as store:
        await finish(store, 40, "task")
        everything = list(await store.query_rollouts())
        store.engine.archive_index.flush()
        assert not store.engine.archive_index.pending()[1]
        with store.engine.archive_index._disk:
            if damage == "altered":
                store.engine.archive_index._db.execute("UPDATE bodies SET body = 'text' WHERE number = 1")
            else:
                store.engine.archive_index._db.execute("DROP TABLE bodies")
        for _ in range(2):
            try:
                assert await store.get_rollout_by_id(everything[0].rollout_id) == everything[0]
                break
            except Rebuilding:
                await store.engine.indexed()
        else:
            pytest.fail("the rollout is not found again")
        await store.update_rollout(everything[1].rollout_id, status="queuing")
        await finish(store, 20, "more")
        assert len(await store.query_rollouts()) == 60


async def test_an_index_that_cannot_be_emptied_at_the_start_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.db"
    with archiving(path) as store:
        await finish(store, 40, "task")
        everything = list(await store.query_rollouts())
    for left in tmp_path.glob("*.index*"):
        left.unlink()
    clear, begin, refused = ArchiveIndex.clear, ArchiveIndex._begin_anew, [False]

    def refusing(index: ArchiveIndex) -> None:
        refused[0] = True
        clear(index)

    def begin_anew(index: ArchiveIndex) -> None:
        if refused[0]:
            refused[0] = False
            raise sqlite3.OperationalError("database or disk is full")
        begin(index)

    monkeypatch.setattr(ArchiveIndex, "clear", refusing)
    monkeypatch.setattr(ArchiveIndex, "_begin_anew", begin_anew)
    with archiving(path) as store:
        assert list(await store.query_rollouts()) == everything
        assert store.engine.archive_index.whole and not store.engine.archive_index.broken


async def test_an_index_that_cannot_be_written_keeps_the_store_going(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with archiving(tmp_path / "log.db") as store:
        await finish(store, 40, "task")
        first = (await store.query_rollouts())[0]
        store.engine.archive_index.flush()

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(store.engine.archive_index, "_write", full)
        await store.update_rollout(first.rollout_id, status="queuing")  # out of the index
        await finish(store, 20, "more")
        assert (await store.get_rollout_by_id(first.rollout_id)).status == "queuing"
        monkeypatch.undo()
        found = await store.query_rollouts()
        assert len(found) == found.total == 60 and found[0].status == "queuing"


@pytest.mark.skipif(sys.platform == "win32", reason="names of files on POSIX")
@pytest.mark.parametrize("name", ["symbolic link", "link to the folder", "hard link", "renamed"])
async def test_a_log_is_locked_under_every_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "folder" / "log.db"
    other = tmp_path / "other.db"
    with open_store(f"sqlite:///{path}") as store:  # type: ignore[attr-defined]
        await store.enqueue_rollout("one")
        if name == "symbolic link":
            other.symlink_to(path)
        elif name == "link to the folder":
            (tmp_path / "again").symlink_to(path.parent, target_is_directory=True)
            other = tmp_path / "again" / "log.db"
        elif name == "hard link":
            os.link(path, other)
        elif sys.platform == "linux":
            path.rename(other)
        else:
            pytest.skip("a renamed file is noticed on Linux only")
        assert try_to_open(other).startswith("LogLocked")
        with pytest.raises(LogLocked):
            open_store(f"sqlite:///{other}")
        assert try_to_open(other).startswith("LogLocked"), "refusing one in this process does not let others in"
        await store.enqueue_rollout("two")
        if name == "renamed":
            other.rename(path)
        elif name == "hard link":
            other.unlink()
    if name != "hard link":
        assert try_to_open(path if name == "renamed" else other) == "opened"
    with open_store(f"sqlite:///{path}") as store:  # type: ignore[attr-defined]
        assert [one.input for one in await store.query_rollouts()] == ["one", "two"]


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes on POSIX")
async def test_a_link_resolves_to_the_file_with_all_that_lies_beside_it(tmp_path: Path) -> None:
    path, link = tmp_path / "folder" / "log.db", tmp_path / "link.db"
    with open_store(f"sqlite:///{path}") as store:  # type: ignore[attr-defined]
        await store.enqueue_rollout("one")
        link.symlink_to(path)
        with SqliteLog.open_readonly(link) as looked:
            assert looked.ends("control", 0)[1] == store.engine.log.ends("control", 0)[1], "its write-ahead log too"
    with open_store(f"sqlite:///{link}") as store:  # type: ignore[attr-defined]
        await store.enqueue_rollout("two")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "link.db"]


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes on POSIX")
async def test_a_link_at_the_name_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "log.db.lock").symlink_to(precious)
    with pytest.raises(StorageError, match="log.db.lock is not a file"):
        open_store(f"sqlite:///{tmp_path / 'log.db'}")
    assert precious.read_text() == "kept"


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes on POSIX")
async def test_a_log_and_what_lies_beside_it_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with archiving(tmp_path / ".agl" / "log.db") as store:
            await finish(store, 30, "secret")
            store.engine.archive_index.flush()
            made = sorted((tmp_path / ".agl").iterdir())
            assert {one.name for one in made} >= {"log.db", "log.db-wal", "log.db-shm", "log.db.lock", "log.db.index"}
            assert {oct(one.stat().st_mode & 0o777) for one in made} == {"0o600"}, made
            assert oct((tmp_path / ".agl").stat().st_mode & 0o777) == "0o700"
    finally:
        os.umask(before)
