"""The log in one SQLite file: `SqliteLog` for the process that writes it, `ReadOnlyLog` for every other one.

Writing: one committer thread, one transaction and one fsync for all that is waiting. A checkpoint moves pages of the
write-ahead log into the file beside the commits, so that no commit waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import InvalidInput, LogClosed, LogError, LogFull, OffsetLost, StorageError, UnknownOutcome
from ..append_checks import PendingAppend, PendingCommit, check_topic
from ..interface import (
    EVERYWHERE,
    Ack,
    Done,
    KeyRange,
    Log,
    Membership,
    NewRecord,
    OnProblem,
    OnRecords,
    Record,
    Subscription,
)
from ..local.follower import Follower
from ..local.group_commit import EmbeddedLog, check_offset
from ..private_files import make_folder, make_private
from ..topics import STORED, TOPICS
from .read_pool import Reader
from .schema import MOST_OFFSET, Row, altered, check_kind, checksum, gone, opening_failed, prepare, storage_error, table
from .writer_lock import WriterLock, is_held

logger = logging.getLogger(__name__)

CHECKPOINT_PAGES = 4_000
"""Pages (4 kB) written between two checkpoints. The file is synced with each, so fewer would cost throughput."""
RESTART_PAGES = 16_000
"""A write-ahead log of so many pages is begun anew by the committer itself, which waits for that: 64 MB."""
_PAGE_BYTES = 4096


class Checkpointer:
    """Counts what is committed and starts a thread when it is time. `wrote` and `overgrown` are the committer's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pages = 0
        self._thread: threading.Thread | None = None
        self.overgrown = False
        """Commits outran the checkpoints: the log can be begun anew only while nobody writes."""

    def wrote(self, pages: int) -> None:
        """So many pages were committed."""
        self._pages += pages
        running = self._thread
        if self._pages >= CHECKPOINT_PAGES and (running is None or not running.is_alive()):
            self._pages = 0
            self._thread = threading.Thread(target=self._run, name="agl-log-checkpoint", daemon=True)
            self._thread.start()

    def restart(self, db: sqlite3.Connection) -> None:
        """Move the rest and begin the write-ahead log anew; a reader in the way puts it off."""
        self.overgrown = False
        try:
            db.execute("PRAGMA busy_timeout = 0")
            db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        except sqlite3.Error as error:
            logger.warning("The write-ahead log of %s keeps growing: %s", self._path, error)
        finally:
            db.execute("PRAGMA busy_timeout = 10000")

    def wait(self) -> None:
        """Return when no checkpoint is under way."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            db = sqlite3.connect(self._path, isolation_level=None, timeout=1)
            try:
                _, written, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                self.overgrown = written >= RESTART_PAGES
            finally:
                db.close()
        except sqlite3.Error as error:  # the pages stay where they are, and the next checkpoint takes them
            logger.warning("A checkpoint of %s failed: %s", self._path, error)


def pages_of(rows: Sequence[Row], indexed: bool) -> int:
    """About how many pages a commit of these rows writes: their bytes, and a page of the index for each key."""
    size = sum(len(row[4]) + len(row[3]) + 64 for row in rows)
    return 2 + size // _PAGE_BYTES + (len(rows) if indexed else 0)


Commit = Callable[[sqlite3.Connection], None]
_ROWS = 64
"""Rows of one INSERT at most. Each statement gives up the interpreter's lock once, and a busy thread gives it back late;
`executemany` does so for each row."""
_STATEMENTS = 4 * _ROWS
"""Statements that the connection keeps compiled: an INSERT for each number of rows, of the topics that are written often."""


def commit(db: sqlite3.Connection) -> None:
    """End the transaction; tests put something that fails in its place."""
    db.execute("COMMIT")


class SqliteLog(EmbeddedLog):
    """A log in one SQLite file (WAL, synchronous=FULL).

    An error before the COMMIT means not written, and the log goes on. A COMMIT that fails means unknown: the file is
    opened again, what it holds then is the truth, and appends are refused with `StorageError` until that works.

    Args:
        path: the file; it and its folders are made where there are none.
        commit: ends a transaction (tests let it fail).
        max_pages: the most pages the file may have, the real error of a full disk (tests).
    """

    def __init__(self, path: str | Path, *, commit: Commit = commit, max_pages: int | None = None) -> None:
        self.path = Path(
            os.path.realpath(path)
        )  # links resolved: the lock, the index and SQLite's files lie beside the file
        check_kind(self.path)
        make_folder(self.path.parent)
        self._commit_hook = commit
        self._max_pages = max_pages
        self._ends: dict[str, int] = {}
        self._db: sqlite3.Connection | None = None
        self._suspect = False
        self._level = ""
        """The `synchronous` of the connection: each statement that need not be made saves the interpreter's lock."""
        self._checkpointer = Checkpointer(self.path)
        self._lock_file = WriterLock(self.path)
        try:
            make_private(self.path)
            self._lock_file.hold(self.path)
            self._db, meta = self._connect()
            self._ends = _ends_of(self._db)
        except BaseException as error:
            self._disconnect()
            self._lock_file.release()
            if isinstance(error, OSError):
                raise StorageError(f"{self.path} cannot be opened: {error.strerror or error}") from error
            if isinstance(error, sqlite3.Error):
                raise opening_failed(error, self.path) from error
            raise
        self._reader = Reader(self.path, owned=True)
        super().__init__(f"sqlite:///{path}", meta["log_id"])
        self._start()

    def __enter__(self) -> SqliteLog:
        return self

    @staticmethod
    def open_readonly(path: str | Path) -> ReadOnlyLog:
        """Look at a file, also one that another process writes, and a copy; never writes."""
        return ReadOnlyLog(Path(path))

    def set_address(self, address: str | None) -> None:
        """Say where this process serves the log, for the message of who is refused it."""
        self._lock_file.set_address(address)

    # Connecting

    def _connect(self) -> tuple[sqlite3.Connection, dict[str, str]]:
        db = sqlite3.connect(
            self.path, check_same_thread=False, isolation_level=None, timeout=10, cached_statements=_STATEMENTS
        )
        try:
            meta = prepare(db, self.path)
            db.execute("PRAGMA synchronous = FULL")
            self._level = "FULL"
            db.execute("PRAGMA wal_autocheckpoint = 0")
            db.execute("PRAGMA secure_delete = OFF")
            if self._max_pages is not None:
                db.execute(f"PRAGMA max_page_count = {self._max_pages}")
        except BaseException:
            db.close()
            raise
        return db, meta

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):  # it failed before; the next connection starts from the file
                db.close()

    def _connection(self) -> sqlite3.Connection:
        """The connection, opened again after a failure; tells followers what the file holds then."""
        if self._db is not None:
            return self._db
        db, _ = self._connect()
        try:
            if self._suspect:
                # What a failed sync left in the write-ahead log may be in memory only, and the next sync would not
                # write it: move it into the file, which syncs that, and begin the write-ahead log anew.
                busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if busy:
                    raise StorageError(f"{self.path} could not be brought into order: a reader is in the way")
            ends = _ends_of(db)
        except BaseException:
            db.close()
            raise
        self._suspect = False
        before, self._ends, self._db = self._ends, ends, db
        for topic, end in ends.items():
            if end > before[topic]:
                self._feeds[topic].publish(before[topic], end, ())
                self._groups.wake()
            elif end < before[topic]:
                self._feeds[topic].shrink(end)
        return db

    # Committing, in the committer thread

    def _commit(self, appends: Sequence[PendingAppend], commits: Sequence[PendingCommit]) -> Sequence[Ack | LogError]:
        try:
            db = self._connection()
            ends = dict(self._ends)
            rows, acks = _rows_of(appends, ends)
            # `synchronous` cannot change inside a transaction; a batch of heartbeats alone need not reach the disk.
            level = "FULL" if not appends or any(TOPICS[topic].durable for topic in rows) else "NORMAL"
            if level != self._level:
                db.execute(f"PRAGMA synchronous = {level}")
                self._level = level
            db.execute("BEGIN IMMEDIATE")
            for topic, of_topic in rows.items():
                _insert(db, topic, of_topic)
            if commits:
                db.executemany(
                    "INSERT OR REPLACE INTO group_offsets VALUES (?, ?, ?, ?)",
                    [(one.group, one.topic, one.partition, one.offset) for one in commits],
                )
        except (sqlite3.Error, LogError) as error:
            return self._not_written(error, len(appends))
        try:
            self._commit_hook(db)
        except (sqlite3.Error, OSError) as error:
            return self._unknown(error, len(appends))
        self._ends = ends
        self._checkpointer.wrote(sum(pages_of(of, TOPICS[topic].by_key) for topic, of in rows.items()))
        if self._checkpointer.overgrown:
            self._checkpointer.restart(db)
        return acks

    def _not_written(self, error: sqlite3.Error | LogError, count: int) -> list[LogError]:
        failure = storage_error(error, "appending") if isinstance(error, sqlite3.Error) else error
        db = self._db
        if db is not None:
            try:
                if db.in_transaction:
                    db.execute("ROLLBACK")
            except sqlite3.Error as worse:
                logger.warning("A transaction could not be rolled back: %s", worse)
                self._disconnect()
            if not isinstance(failure, LogFull):
                self._disconnect()  # what we think of the file may be what is wrong
        kind = LogFull if isinstance(failure, LogFull) else StorageError
        return [kind(failure.message) for _ in range(count)]

    def _unknown(self, error: Exception, count: int) -> list[LogError]:
        logger.error("A commit of %s failed, the file is opened again: %s", self.path, error)
        self._suspect = True
        self._disconnect()
        try:
            self._connection()  # at once, so that who asks about an unknown outcome reads the truth
        except (sqlite3.Error, LogError) as worse:
            logger.error("%s cannot be opened again yet: %s", self.path, worse)
        return [
            UnknownOutcome(f"the commit failed ({error}); whether it took effect is not known") for _ in range(count)
        ]

    # Reading

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        self._check_place(topic, partition)
        check_offset(offset)
        end = self._ends[topic]
        found = self._reader.read(topic, offset, max_records, headers)
        if not found and offset < end and max_records > 0 and not TOPICS[topic].compacted:
            raise gone(topic, offset)
        return found

    def read_key(
        self, topic: str, key: str, *, after: int = -1, max_records: int | None = None, within: KeyRange = EVERYWHERE
    ) -> Sequence[Record]:
        self._check_indexed(topic)
        return self._reader.read_key(topic, key, after, max_records)

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        self._check_place(topic, partition)
        if TOPICS[topic].compacted:
            return self._reader.ends(topic)[0], self._ends[topic]
        return 0, self._ends[topic]

    def committed(self, group: str, topic: str, partition: int) -> int:
        return self._reader.group_offset(group, topic, partition)

    def _end(self) -> None:
        self._checkpointer.wait()
        self._reader.close()
        if self._db is not None:
            with contextlib.suppress(
                sqlite3.Error
            ):  # a reader elsewhere is in the way; the next opener goes on from here
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._disconnect()
        self._lock_file.release()


def _ends_of(db: sqlite3.Connection) -> dict[str, int]:
    ends: dict[str, int] = {}
    for topic in STORED:
        first = db.execute(f"SELECT min(offset) FROM {table(topic)}").fetchone()[0]
        last = db.execute(f"SELECT max(offset) FROM {table(topic)}").fetchone()[0]
        if last is not None and not 0 <= first <= last < MOST_OFFSET:
            raise altered(topic, int(first if first < 0 else last), "a log does not have so many records")
        ends[topic] = 0 if last is None else int(last) + 1
    return ends


def _rows_of(appends: Sequence[PendingAppend], ends: dict[str, int]) -> tuple[dict[str, list[Row]], list[Ack]]:
    """The rows by topic, and what to answer; `ends` moves on."""
    by_topic: dict[str, list[Row]] = {}
    acks: list[Ack] = []
    for pending in appends:
        base = ends[pending.topic]
        rows = by_topic.setdefault(pending.topic, [])
        for offset, (new, headers) in enumerate(zip(pending.records, pending.headers), base):
            stamp, key, value = new.timestamp_us, new.key, new.value
            rows.append((offset, stamp, key, headers, value, checksum(offset, stamp, key, headers, value)))
        ends[pending.topic] = base + len(pending.records)
        acks.append(Ack(base, len(pending.records)))
    return by_topic, acks


def _insert(db: sqlite3.Connection, topic: str, rows: Sequence[Row]) -> None:
    name = table(topic)
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        places = ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(some))
        db.execute(f"INSERT INTO {name} VALUES {places}", [value for row in some for value in row])
    if TOPICS[topic].compacted:
        newest = {row[2]: row[0] for row in rows}
        db.executemany(f"DELETE FROM {name} WHERE key = ? AND offset < ?", list(newest.items()))


WATCH_SECONDS = 0.05
"""How often a follower asks SQLite whether another process has written."""
_PAGE = 1024


def check_there(path: Path) -> None:
    """Raise `InvalidInput` with what to do instead unless `path` is a file that may be a log and may be read."""
    if not path.is_dir() and not path.is_file():
        raise InvalidInput(f"there is no log at {path}; `agl store` begins one, and every command takes another's address")
    check_kind(path)


class ReadOnlyLog(Log):
    """A log file that this process only looks at: no lock, nothing written to it, also while its owner runs.

    Beside the file of a killed store, or a copy with its write-ahead log, SQLite makes its `-shm` file anew.
    """

    def __init__(self, path: Path, url: str | None = None) -> None:
        check_there(path)
        self.path = Path(os.path.realpath(path))
        if os.stat(self.path).st_nlink > 1 and not os.path.exists(f"{self.path}-wal"):
            logger.warning(
                "%s has another name (a hard link); what a store wrote under that one may be missing here.", self.path
            )
        self.url = url or f"sqlite:///{path}"
        self._reader = Reader(self.path, owned=False)
        self.log_id = self._reader.meta()["log_id"]
        self._stop = threading.Event()

    def partitions(self, topic: str) -> int:
        check_topic(topic)
        return 1

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        """Raises `InvalidInput`, always: this log is only read."""
        raise InvalidInput(f"{self.path} is open for reading only")

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        self._check_place(topic, partition)
        check_offset(offset)
        return self._reader.read(topic, offset, max_records, headers)

    def read_key(
        self, topic: str, key: str, *, after: int = -1, max_records: int | None = None, within: KeyRange = EVERYWHERE
    ) -> Sequence[Record]:
        check_topic(topic)
        if not TOPICS[topic].by_key:
            raise InvalidInput(f"topic {topic!r} is not read by key")
        return self._reader.read_key(topic, key, after, max_records)

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        self._check_place(topic, partition)
        return self._reader.ends(topic)

    def follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        self._check_place(topic, partition)
        check_offset(offset)
        if self._stop.is_set():
            raise LogClosed("the log was closed")
        follower = Follower(f"{topic}[{partition}]", offset, on_records, on_problem, _nothing_to_forget)
        threading.Thread(
            target=_watch,
            args=(follower, topic, Reader(self.path, owned=False), self.log_id, self._stop),
            name=f"agl-log-watch-{topic}",
            daemon=True,
        ).start()
        return follower

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Membership:
        """Raises `InvalidInput`, always: a group's offsets are kept by the process that writes."""
        raise InvalidInput(f"{self.path} is open for reading only; a group needs the process that writes it")

    def is_written(self) -> bool:
        """Whether a process has the log open for writing now."""
        return is_held(self.path)

    def close(self) -> None:
        self._stop.set()
        self._reader.close()

    def _check_place(self, topic: str, partition: int) -> None:
        check_topic(topic)
        if partition != 0:
            raise InvalidInput(f"there is no partition {partition}; this log has 1")


def _nothing_to_forget(follower: Follower) -> None:
    """Its thread ends by itself."""


def _watch(follower: Follower, topic: str, reader: Reader, log_id: str, stop: threading.Event) -> None:
    """Read what another process appends, until the follower or its log is closed."""
    seen: tuple[int, ...] | None = None
    try:
        while not follower.closed:
            if stop.is_set():
                raise LogClosed("the log was closed")
            version = reader.version()
            if version == seen:
                stop.wait(WATCH_SECONDS)
                continue
            seen = version
            if reader.meta()["log_id"] != log_id:
                raise OffsetLost(f"{reader.path} is another log now", offset=follower.next)
            end = reader.ends(topic)[1]
            if follower.next > end:
                raise OffsetLost(f"{topic} ends at offset {end}", offset=follower.next)
            while not follower.closed and not stop.is_set():
                found = reader.read(topic, follower.next, _PAGE, True)
                if not found:
                    break
                follower.deliver(found)
    except LogError as error:
        follower.fail(error)
    finally:
        reader.close()
