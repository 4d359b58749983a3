"""Reading the file: from any thread, while it is written, and from processes that may only look."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from ..errors import InvalidInput, LogClosed, LogError
from ..log import Done, Log, Membership, NewRecord, OnProblem, OnRecords, Record, Subscription
from ..log_records import check_topic
from ..topics import TOPICS
from .schema import Row, read_meta, records, table, told

T = TypeVar("T")
WATCH_SECONDS = 0.05
"""How often a read-only follower asks SQLite whether another process has written."""
_COLUMNS = "offset, ts, key, headers, value, crc"


class Reader:
    """Read-only connections to one file, one a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[sqlite3.Connection] = []
        self._closed = False

    def _connection(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            with self._lock:
                if self._closed:
                    raise LogClosed("the log was closed")
                uri = f"file:{quote(str(self._path))}?mode=ro"
                db = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=10)
                self._all.append(db)
            self._local.db = db
        return db

    def ask(self, doing: str, question: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query of this thread; SQLite's errors become ours."""
        try:
            return question(self._connection())
        except sqlite3.ProgrammingError as error:
            raise LogClosed(f"the log was closed: {error}") from None
        except sqlite3.Error as error:
            raise told(error, doing) from None

    def read(self, topic: str, offset: int, max_records: int, headers: bool) -> Sequence[Record]:
        """As `Log.read`."""
        check_topic(topic)
        rows: list[Row] = self.ask(
            f"reading {topic} from offset {offset}",
            lambda db: db.execute(
                f"SELECT {_COLUMNS} FROM {table(topic)} WHERE offset >= ? ORDER BY offset LIMIT ?", (offset, max_records)
            ).fetchall(),
        )
        expected = None if TOPICS[topic].compacted else max(offset, 0)
        return list(records(topic, rows, headers, expected))

    def read_key(self, topic: str, key: str, after: int, max_records: int | None) -> Sequence[Record]:
        """As `Log.read_key`."""
        check_topic(topic)
        if not TOPICS[topic].by_key:
            raise InvalidInput(f"topic {topic!r} is not read by key")
        limit = -1 if max_records is None else max_records
        rows: list[Row] = self.ask(
            f"reading {topic} of {key}",
            lambda db: db.execute(
                f"SELECT {_COLUMNS} FROM {table(topic)} WHERE key = ? AND offset > ? ORDER BY offset LIMIT ?",
                (key, after, limit),
            ).fetchall(),
        )
        return list(records(topic, rows, True, None))

    def end(self, topic: str) -> int:
        """The offset of the next record."""
        check_topic(topic)
        row = self.ask(
            f"reading {topic}", lambda db: db.execute(f"SELECT max(offset) FROM {table(topic)}").fetchone()
        )
        return 0 if row[0] is None else int(row[0]) + 1

    def version(self) -> int:
        """A number that changes when another connection commits."""
        return int(self.ask("watching the file", lambda db: db.execute("PRAGMA data_version").fetchone())[0])

    def meta(self) -> dict[str, str]:
        """The file's meta table."""
        return read_meta(self._connection(), self._path)

    def close(self) -> None:
        """Close every connection. Idempotent."""
        with self._lock:
            self._closed = True
            for db in self._all:
                db.close()
            self._all.clear()


class _Watch(Subscription):
    """A thread that reads what another process appends."""

    def __init__(self, log: ReadOnlyLog, topic: str, offset: int, on_records: OnRecords, on_problem: OnProblem) -> None:
        self._log, self._topic, self._offset = log, topic, offset
        self._on_records, self._on_problem = on_records, on_problem
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"agl-watch-{topic}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        seen = -1
        try:
            while not self._stop.is_set():
                version = self._log.reader.version()
                if version == seen:
                    self._stop.wait(WATCH_SECONDS)
                    continue
                seen = version
                while not self._stop.is_set():
                    found = self._log.read(self._topic, 0, self._offset)
                    if not found:
                        break
                    self._offset = found[-1].offset + 1
                    self._on_records(found)
        except LogError as error:
            if not self._stop.is_set():
                self._on_problem(error)

    def close(self) -> None:
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()


class ReadOnlyLog(Log):
    """A log file that this process only looks at: never written, no lock taken, also while its owner runs."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InvalidInput(f"there is no log at {path}")
        self.path = path
        self.url = f"sqlite:///{path}"
        self.reader = Reader(path)
        self.log_id = self.reader.meta()["log_id"]

    def partitions(self, topic: str) -> int:
        check_topic(topic)
        return 1

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        raise LogError(f"{self.path} is open for reading only")

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        return self.reader.read(topic, offset, max_records, headers)

    def read_key(self, topic: str, key: str, *, after: int = -1, max_records: int | None = None) -> Sequence[Record]:
        return self.reader.read_key(topic, key, after, max_records)

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        return 0, self.reader.end(topic)

    def follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        check_topic(topic)
        return _Watch(self, topic, offset, on_records, on_problem)

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Membership:
        raise LogError(f"{self.path} is open for reading only; a group needs the process that writes it")

    def close(self) -> None:
        self.reader.close()
