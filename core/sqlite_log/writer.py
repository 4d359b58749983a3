"""Writing the file: one process, one committer thread, one transaction and one fsync for all that is waiting."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ..embedded_log import EmbeddedLog
from ..errors import LogCorrupt, LogError, UnknownOutcome
from ..log import Ack, Record
from ..log_records import PendingAppend, PendingCommit
from ..topics import STORED, TOPICS
from .lock import WriterLock
from .reader import Reader, ReadOnlyLog
from .schema import checksum, create, read_meta, table, told

CHECKPOINT_ROWS = 20_000
"""Rows between two checkpoints; they run in a thread of their own, beside the commits."""

Commit = Callable[[sqlite3.Connection], None]


def commit(db: sqlite3.Connection) -> None:
    """End the transaction; tests put something that fails in its place."""
    db.execute("COMMIT")


class SqliteLog(EmbeddedLog):
    """A log in one SQLite file (WAL, synchronous=FULL).

    An error before the COMMIT means not written. A COMMIT that fails means unknown: the file is opened again, and the
    next offsets are what it holds then. `max_pages` limits the file's size in SQLite pages (tests of a full disk).
    """

    def __init__(self, path: str | Path, *, commit: Commit = commit, max_pages: int | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_file = WriterLock(self.path.with_name(self.path.name + ".lock"))
        self._commit_hook = commit
        self._max_pages = max_pages
        self._ends: dict[str, int] = {}
        self._rows = 0
        self._checkpointing: threading.Thread | None = None
        try:
            self._db = self._connect()
            meta = read_meta(self._db, self.path)
            self._load_ends()
        except BaseException:
            self._lock_file.release()
            raise
        self.reader = Reader(self.path)
        super().__init__(f"sqlite:///{self.path}", meta["log_id"])
        self._start()

    @staticmethod
    def open_readonly(path: str | Path) -> ReadOnlyLog:
        """Look at a file, also one that another process writes, and a copy; never writes."""
        return ReadOnlyLog(Path(path))

    def set_address(self, address: str | None) -> None:
        """Say where this process serves the log, for whoever is refused it."""
        self._lock_file.set_address(address)

    def _connect(self) -> sqlite3.Connection:
        new = not self.path.exists() or self.path.stat().st_size == 0
        try:
            db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=10)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA wal_autocheckpoint = 0")
            if self._max_pages is not None:
                db.execute(f"PRAGMA max_page_count = {self._max_pages}")
            if new:
                create(db)
            return db
        except sqlite3.DatabaseError as error:
            raise _opening(error, self.path) from None

    def _load_ends(self) -> None:
        for topic in STORED:
            try:
                row = self._db.execute(f"SELECT max(offset) FROM {table(topic)}").fetchone()
            except sqlite3.DatabaseError as error:
                raise _opening(error, self.path) from None
            self._ends[topic] = 0 if row[0] is None else int(row[0]) + 1

    # Committing, in the committer thread

    def _commit(self, appends: Sequence[PendingAppend], commits: Sequence[PendingCommit]) -> Sequence[Ack | LogError]:
        db = self._db
        ends = dict(self._ends)
        acks: list[Ack | LogError] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            by_topic: dict[str, list[tuple[int, int, str, bytes, bytes, int]]] = {}
            for pending in appends:
                base = ends[pending.topic]
                rows = by_topic.setdefault(pending.topic, [])
                for at, (record, headers) in enumerate(zip(pending.records, pending.headers)):
                    offset, stamp, key, value = base + at, record.timestamp_us, record.key, record.value
                    rows.append((offset, stamp, key, headers, value, checksum(offset, stamp, key, headers, value)))
                ends[pending.topic] = base + len(pending.records)
                acks.append(Ack(base, len(pending.records)))
            for topic, rows in by_topic.items():
                self._insert(db, topic, rows)
            if commits:
                db.executemany(
                    "INSERT OR REPLACE INTO group_offsets VALUES (?, ?, ?, ?)",
                    [(one.group, one.topic, one.partition, one.offset) for one in commits],
                )
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            return [told(error, "appending")] * len(appends)
        try:
            self._commit_hook(db)
        except (sqlite3.Error, OSError) as error:
            self._reopen()
            return [UnknownOutcome(f"the commit failed: {error}; whether it took effect is not known")] * len(appends)
        self._ends = ends
        self._maybe_checkpoint(sum(len(pending.records) for pending in appends))
        return acks

    def _insert(self, db: sqlite3.Connection, topic: str, rows: list[tuple[int, int, str, bytes, bytes, int]]) -> None:
        name = table(topic)
        db.executemany(f"INSERT INTO {name} VALUES (?, ?, ?, ?, ?, ?)", rows)
        if TOPICS[topic].compacted:
            newest = {row[2]: row[0] for row in rows}
            db.executemany(f"DELETE FROM {name} WHERE key = ? AND offset < ?", list(newest.items()))

    def _reopen(self) -> None:
        """After a failed COMMIT: trust nothing but what a fresh connection sees."""
        self._db.close()
        self._db = self._connect()
        before = dict(self._ends)
        self._load_ends()
        for topic, end in self._ends.items():
            if end < before[topic]:
                self._feeds[topic, 0].shrink(end)

    def _maybe_checkpoint(self, rows: int) -> None:
        self._rows += rows
        running = self._checkpointing
        if self._rows >= CHECKPOINT_ROWS and (running is None or not running.is_alive()):
            self._rows = 0
            self._checkpointing = threading.Thread(target=self._checkpoint, name="agl-checkpoint", daemon=True)
            self._checkpointing.start()

    def _checkpoint(self) -> None:
        """Move pages of the write-ahead log into the file, without holding up anybody."""
        try:
            db = sqlite3.connect(self.path, isolation_level=None, timeout=1)
            try:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                db.close()
        except sqlite3.Error:
            self._rows = CHECKPOINT_ROWS  # busy or full: the pages stay where they are, the next commit tries again

    # Reading

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        self._check_process()
        self._check_place(topic, partition)
        found = self.reader.read(topic, offset, max_records, headers)
        if not found and 0 <= offset < self._ends[topic] and not TOPICS[topic].compacted:
            raise LogCorrupt(
                f"the record at offset {offset} of {topic} is missing", position=offset, topic=topic, partition=0
            )
        return found

    def read_key(self, topic: str, key: str, *, after: int = -1, max_records: int | None = None) -> Sequence[Record]:
        self._check_process()
        return self.reader.read_key(topic, key, after, max_records)

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        return 0, self._ends[topic]

    def committed(self, group: str, topic: str, partition: int) -> int:
        row = self.reader.ask(
            "reading a group's offset",
            lambda db: db.execute(
                "SELECT offset FROM group_offsets WHERE consumer_group = ? AND topic = ? AND partition = ?",
                (group, topic, partition),
            ).fetchone(),
        )
        return 0 if row is None else int(row[0])

    def _end(self) -> None:
        if self._checkpointing is not None:
            self._checkpointing.join()
        self.reader.close()
        with contextlib.suppress(sqlite3.Error):  # a reader of another process is in the way; the next opener truncates
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        self._lock_file.release()


def _opening(error: sqlite3.DatabaseError, path: Path) -> LogError:
    failure = told(error, f"opening {path}")
    if isinstance(failure, LogCorrupt):
        return LogCorrupt(f"{path} is damaged: {error}; `agl log check` tells more", position=0)
    return failure
