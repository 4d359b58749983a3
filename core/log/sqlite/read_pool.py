"""Reading the file: from any thread, while it is written, and from processes that may only look."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ...errors import LogClosed, LogCorrupt, StorageError
from ..interface import Record
from ..topics import TOPICS
from .schema import MOST_OFFSET, MOST_VALUE, Row, altered, read_meta, records, storage_error, table

T = TypeVar("T")
State = tuple[int, ...]
"""What a connection was opened on; another one means: open it again."""
_COLUMNS = (
    "offset, ts, key, headers, value, crc"
    if sys.version_info >= (3, 11)  # where the connection knows how large a cell may be
    else f"offset, ts, key, CASE WHEN length(headers) <= {MOST_VALUE} THEN headers END AS headers, "
    f"CASE WHEN length(value) <= {MOST_VALUE} THEN value END AS value, crc"
)
_IDLE_CONNECTIONS = 8
_STATE_TRIES = 8
_MOST_ROWS = 1 << 31


class Reader:
    """Read-only connections to one file, handed from thread to thread.

    Args:
        path: the file, absolute.
        owned: this process writes the file, so its write-ahead log is there. Otherwise each question looks first: a
            file that nobody writes is opened as immutable, which needs no file beside it and no right to make one.
    """

    def __init__(self, path: Path, *, owned: bool) -> None:
        self.path = path
        self._owned = owned
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[tuple[State, sqlite3.Connection]] = []
        self._closed = False

    # Connections

    def state(self) -> State:
        """Which file it is, and, while nobody writes it, of what size and age. Raises `StorageError` without one."""
        if self._owned:
            return ()
        try:
            file = os.stat(self.path)
        except OSError as error:
            raise StorageError(f"there is no log at {self.path}: {error.strerror}") from error
        try:
            if os.stat(f"{self.path}-wal").st_size:
                return (file.st_ino,)
        except OSError:
            pass
        return (file.st_ino, file.st_size, file.st_mtime_ns)

    def ask(self, doing: str, question: Callable[[sqlite3.Connection], T]) -> T:
        """Put a question to the file, whose errors become ours."""
        for _ in range(_STATE_TRIES):
            state = self.state()
            try:
                db = self._take(state)
                try:
                    answer = question(db)
                finally:
                    self._give(state, db)
            except sqlite3.Error as error:
                if self.state() == state:
                    raise storage_error(error, doing) from error
                continue
            except LogCorrupt:
                if self.state() == state:
                    raise
                continue
            if len(state) <= 1 or self.state() == state:
                return answer
        raise StorageError(f"{self.path} does not hold still while {doing}; try again")

    def _take(self, state: State) -> sqlite3.Connection:
        if os.getpid() != self._pid:
            raise LogClosed("the log belongs to the process that opened it, not to its forked children")
        with self._lock:
            if self._closed:
                raise LogClosed("the log was closed")
            while self._idle:
                of, db = self._idle.pop()
                if of == state:
                    return db
                db.close()
        mode = "?mode=ro&immutable=1" if len(state) > 1 else "?mode=ro"
        db = sqlite3.connect(
            self.path.as_uri() + mode, uri=True, check_same_thread=False, isolation_level=None, timeout=10
        )
        if sys.version_info >= (3, 11):
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_VALUE)
        return db

    def _give(self, state: State, db: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _IDLE_CONNECTIONS:
                self._idle.append((state, db))
                return
        db.close()

    def close(self) -> None:
        """Close every connection, those in use when they are given back. Idempotent; nothing in a forked child."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            for _, db in self._idle:
                db.close()
            self._idle.clear()

    # Questions

    def read(self, topic: str, offset: int, max_records: int, headers: bool) -> Sequence[Record]:
        """As `Log.read`; at the end a missing record is not distinguishable from none."""
        if offset > MOST_OFFSET:
            return []
        expected = None if TOPICS[topic].compacted else offset
        query = f"SELECT {_COLUMNS} FROM {table(topic)} WHERE offset >= ? ORDER BY offset LIMIT ?"

        def question(db: sqlite3.Connection) -> list[Record]:
            rows = _rows(db, query, (offset,), max_records, topic, offset)
            return records(topic, rows, headers, expected)

        return self.ask(f"reading {topic} from offset {offset}", question)

    def read_key(self, topic: str, key: str, after: int, max_records: int | None) -> Sequence[Record]:
        """As `Log.read_key`."""
        if after > MOST_OFFSET:
            return []
        limit = -1 if max_records is None else max_records
        query = f"SELECT {_COLUMNS} FROM {table(topic)} WHERE key = ? AND offset > ? ORDER BY offset LIMIT ?"

        def question(db: sqlite3.Connection) -> list[Record]:
            rows = _rows(db, query, (key, after), limit, topic, after + 1)
            return records(topic, rows, True, None)

        return self.ask(f"reading {topic} of {key}", question)

    def ends(self, topic: str) -> tuple[int, int]:
        """(offset of the first record, offset of the next one to come)."""
        query = f"SELECT min(offset) FROM {table(topic)} UNION ALL SELECT max(offset) FROM {table(topic)}"
        (first,), (last,) = self.ask(f"reading {topic}", lambda db: db.execute(query).fetchall())
        if last is None:
            return 0, 0
        if not 0 <= first <= last < MOST_OFFSET:
            raise altered(topic, int(first if first < 0 else last), "a log does not have so many records")
        return (int(first) if TOPICS[topic].compacted else 0), int(last) + 1

    def next_offset(self, topic: str, offset: int) -> int | None:
        """The first offset from `offset` on that is there; None at the end."""
        if offset > MOST_OFFSET:
            return None
        query = f"SELECT min(offset) FROM {table(topic)} WHERE offset >= ?"
        found = self.ask(f"reading {topic}", lambda db: db.execute(query, (offset,)).fetchone()[0])
        return None if found is None else int(found)

    def group_offset(self, group: str, topic: str, partition: int) -> int:
        """A consumer group's committed offset, 0 without one."""
        query = "SELECT offset FROM group_offsets WHERE consumer_group = ? AND topic = ? AND partition = ?"
        row = self.ask("reading a group's offset", lambda db: db.execute(query, (group, topic, partition)).fetchone())
        return row[0] if row is not None and type(row[0]) is int and 0 <= row[0] < MOST_OFFSET else 0

    def version(self) -> tuple[int, ...]:
        """Numbers that change when another process has written. One thread has to ask, of a reader of its own."""
        state = self.state()
        return (*state, self.ask("watching the file", lambda db: int(db.execute("PRAGMA data_version").fetchone()[0])))

    def meta(self) -> dict[str, str]:
        """The file's meta table."""
        return self.ask(f"opening {self.path}", lambda db: read_meta(db, self.path))


def _rows(db: sqlite3.Connection, query: str, values: tuple[object, ...], limit: int, topic: str, at: int) -> list[Row]:
    """The rows of a query that ends in a LIMIT. Where SQLite fails on the way, the error tells the first bad offset."""
    try:
        return db.execute(query, (*values, limit)).fetchall()
    except sqlite3.DatabaseError as error:
        if not isinstance(storage_error(error, "reading"), LogCorrupt):
            raise
        failure = error
    # By halves and not row by row: a cursor of Python 3.10 reads one row ahead and fails one too early.
    low, high = 0, limit if limit >= 0 else _MOST_ROWS
    while low < high:
        middle = (low + high + 1) // 2
        try:
            rows: list[Row] = db.execute(query, (*values, middle)).fetchall()
        except sqlite3.DatabaseError as error:
            high, failure = middle - 1, error
        else:
            low, at = middle, rows[-1][0] + 1
    # From SQLite and not from a check sum: what lies behind it in the page cannot be read either.
    raise altered(topic, at, str(failure)) from failure
