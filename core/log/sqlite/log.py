"""Writing the file: one process, one committer thread, one transaction and one fsync for all that is waiting."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import LogError, LogFull, StorageError, UnknownOutcome
from ..append_checks import PendingAppend, PendingCommit
from ..interface import EVERYWHERE, Ack, KeyRange, Record
from ..local.group_commit import EmbeddedLog, check_offset
from ..private_files import make_folder, make_private
from ..topics import STORED, TOPICS
from .checkpoint import Checkpointer, pages_of
from .read_pool import Reader
from .readonly import ReadOnlyLog
from .schema import MOST_OFFSET, Row, altered, check_kind, checksum, gone, opening_failed, prepare, storage_error, table
from .writer_lock import WriterLock

logger = logging.getLogger(__name__)

Commit = Callable[[sqlite3.Connection], None]
_ROWS = 32
"""Rows of one INSERT. Each statement gives up the interpreter's lock once, and a busy thread gives it back late."""


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
        """Say where this process serves the log, for whoever is refused it."""
        self._lock_file.set_address(address)

    # Connecting

    def _connect(self) -> tuple[sqlite3.Connection, dict[str, str]]:
        db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=10)
        try:
            meta = prepare(db, self.path)
            db.execute("PRAGMA synchronous = FULL")
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
            durable = not appends or any(TOPICS[topic].durable for topic in rows)
            db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
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
    whole = len(rows) - len(rows) % _ROWS
    for start in range(0, whole, _ROWS):
        values = [value for row in rows[start : start + _ROWS] for value in row]
        db.execute(f"INSERT INTO {name} VALUES {_PLACES}", values)
    if whole < len(rows):
        db.executemany(f"INSERT INTO {name} VALUES (?, ?, ?, ?, ?, ?)", rows[whole:])
    if TOPICS[topic].compacted:
        newest = {row[2]: row[0] for row in rows}
        db.executemany(f"DELETE FROM {name} WHERE key = ? AND offset < ?", list(newest.items()))


_PLACES = ", ".join(["(?, ?, ?, ?, ?, ?)"] * _ROWS)
