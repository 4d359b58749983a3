"""The archive index: rollouts that left the fold's hot state, packed, in a SQLite table of their own.

It is a projection, not a source: everything in it follows from the log, so it is written without waiting for the disk
and rebuilt where it is missing. Beside a log file it lies at `<file>.index`; a log in memory has it in memory. A thread
of its own writes it, so that nobody waits for it: what is not written yet is read from memory.

The file carries the log's id, and the position and fingerprint of the fold up to which it is complete. The engine compares
them at opening and makes the index anew where they do not fit (engine.py); a file that cannot be read or that holds
anything but these tables is deleted. An error of the index never reaches the fold.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import Rebuilding, StorageError
from ...core.fold.state import Rollout, hash_of, unpack
from ...core.log.interface import Log
from ...core.log.private_files import make_private
from ...core.model.status import FINISHED

SCHEMA = """
CREATE TABLE rollouts (
    number INTEGER PRIMARY KEY, rollout_id TEXT NOT NULL, status TEXT NOT NULL, attempts INTEGER NOT NULL,
    start_time REAL NOT NULL, end_time REAL NOT NULL, mode TEXT NOT NULL, resources_id TEXT NOT NULL
);
CREATE TABLE bodies (number INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""
ORDERS = {
    "by_id": "CREATE UNIQUE INDEX by_id ON rollouts (rollout_id)",
    "by_status": "CREATE INDEX by_status ON rollouts (status)",
    "by_start": "CREATE INDEX by_start ON rollouts (start_time, number, status)",
    "by_end": "CREATE INDEX by_end ON rollouts (end_time, number, status)",
}
ROW = "(?, ?, ?, ?, ?, ?, ?, ?)"
GROUP = 1024
"""Numbers of rollouts that are copied to the log together."""
AT_ONCE = 500
"""Names in one question; older SQLite takes 999."""
MOST = 2**62
"""More rows than there are; SQLite takes no larger numbers than 2**63."""

SORT_KEYS: dict[str, Callable[[Rollout], Any]] = {
    "rollout_id": lambda one: one.rollout_id,
    "status": lambda one: one.status,
    "start_time": lambda one: one.created_us / 1_000_000,
    "end_time": lambda one: None if one.ended_us is None else one.ended_us / 1_000_000,
    "mode": lambda one: one.mode or "",
    "resources_id": lambda one: one.resources_id or "",
}
"""Field of `model.Rollout` -> what it sorts by, equal to what a view has; None comes last. Each has a column."""


ROWS_AT_ONCE = 64
"""Rows of one INSERT: each gives up the interpreter's lock once, `executemany` does so for each row."""


def _put(db: sqlite3.Connection, into: str, places: str, rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows, or replace them; `places`: those of one row."""
    for at in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[at : at + ROWS_AT_ONCE]
        values = [value for row in some for value in row]
        db.execute(f"INSERT OR REPLACE INTO {into} VALUES {', '.join([places] * len(some))}", values)


def row_of(one: Rollout) -> tuple[Any, ...]:
    """The row of a finished rollout. One that is finished has its end."""
    return (
        one.number, one.rollout_id, one.status, len(one.attempts), one.created_us / 1_000_000,
        (one.ended_us or 0) / 1_000_000, one.mode or "", one.resources_id or "",
    )  # fmt: skip


def group_of(number: int) -> int:
    """The group of a rollout's number; numbers begin at 1."""
    return (number - 1) // GROUP


@dataclass(frozen=True)
class Where:
    """Which rows are wanted, whatever their ids: of these statuses (None: all), with this part in their id.

    `either`: one of the two is enough.
    """

    statuses: frozenset[str] | None = None
    contains: str | None = None
    either: bool = False

    def matches(self, rollout_id: str, status: str) -> bool:
        """Say of one row what the SQL says."""
        found = [status in self.statuses] if self.statuses is not None else []
        if self.contains is not None:
            found.append(self.contains in rollout_id)
        return any(found) if self.either and found else all(found)

    @property
    def statuses_only(self) -> frozenset[str] | None:
        """The statuses of which every row is wanted and no other row; None where ids have to be looked into."""
        if self.contains is None:
            return FINISHED if self.statuses is None else self.statuses & FINISHED
        everything = self.either and self.statuses is not None and self.statuses >= FINISHED
        return FINISHED if everything else None

    def sql(self) -> tuple[str, list[Any]]:
        """The condition, empty for every row, and its parameters."""
        alone = self.statuses_only
        if alone == FINISHED:
            return "", []
        statuses = sorted(FINISHED & self.statuses) if self.statuses is not None else []
        # Written so that an order's index is used, except where one status is wanted in order of creation.
        terms = [f"+status IN ({','.join('?' * len(statuses))})"] if self.statuses is not None else []
        if len(statuses) == 1 and alone is not None:
            terms = ["status = ?"]
        if self.contains is not None:
            terms.append("instr(rollout_id, ?) > 0")
            return f" WHERE {' OR '.join(terms) if self.either else ' AND '.join(terms)}", [*statuses, self.contains]
        return f" WHERE {terms[0]}", list(statuses)


@dataclass(frozen=True)
class ArchiveRows:
    """Reads the table on a connection that nobody else uses meanwhile. `counts`: status -> (rollouts, attempts) of it."""

    db: sqlite3.Connection
    moves: int
    counts: dict[str, tuple[int, int]] = field(default_factory=lambda: dict[str, tuple[int, int]]())

    def total(self, where: Where) -> int:
        """How many rows there are; ids that have to be looked into are counted, everything else is known."""
        alone = where.statuses_only
        if alone is not None:
            return sum(self.counts.get(status, (0, 0))[0] for status in alone)
        condition, values = where.sql()
        return int(self.db.execute(f"SELECT count(*) FROM rollouts{condition}", values).fetchone()[0])

    def ordered(
        self, where: Where, sort_by: str | None, descending: bool, skip: int, count: int
    ) -> list[tuple[Any, int]]:
        """(what it sorts by, number) of `count` rows (-1: all) behind the first `skip`; ties in order of creation."""
        condition, values = where.sql()
        column = "NULL" if sort_by is None else sort_by
        order = "number" if sort_by is None else f"{sort_by} {'DESC' if descending else 'ASC'}, number"
        if sort_by is not None:
            condition = condition.replace(" status = ?", " +status = ?")
        query = f"SELECT {column}, number FROM rollouts{condition} ORDER BY {order} LIMIT ? OFFSET ?"
        return self.db.execute(query, (*values, count, skip)).fetchall()

    def named(self, rollout_ids: Sequence[str], sort_by: str | None) -> Iterator[tuple[Any, int, str, str]]:
        """(what it sorts by, number, id, status) of those of these ids that are there."""
        column = "NULL" if sort_by is None else sort_by
        for at in range(0, len(rollout_ids), AT_ONCE):
            some = rollout_ids[at : at + AT_ONCE]
            marks = ",".join("?" * len(some))
            yield from self.db.execute(
                f"SELECT {column}, number, rollout_id, status FROM rollouts WHERE rollout_id IN ({marks})", some
            ).fetchall()

    def bodies(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """The packed bytes of these rollouts, by their numbers."""
        found: dict[int, bytes] = {}
        for at in range(0, len(numbers), AT_ONCE):
            some = numbers[at : at + AT_ONCE]
            marks = ",".join("?" * len(some))
            found.update(self.db.execute(f"SELECT number, body FROM bodies WHERE number IN ({marks})", some).fetchall())
        return found


logger = logging.getLogger(__name__)

FORM = "4"
"""Form of the tables; an index of another form is thrown away and made again from the log."""
BATCH = 2_000
"""Rollouts that are written together."""
MOST_PENDING = 20_000
"""More than that in memory, and who adds waits for the disk, unless it refuses."""
RETRY_SECONDS = 5.0
"""How long the writer waits after the disk refused a batch."""

Gone = tuple[Rollout, bytes]
"""A rollout that left hot state, and its packed bytes."""


Mark = tuple[int, bytes]
"""A position of the log and the fold's fingerprint there."""

_META = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)"
_TRANSIENT = ("disk is full", "locked", "disk I/O error", "readonly")
"""SQLite's words for a write that may succeed later; anything else means that the file is not what was written."""


class ArchiveIndex:
    """Packed rollouts by id and in order of creation. Thread-safe.

    Nothing that changes it raises: a write that fails is repeated, and a table that cannot be read is reported to
    `on_broken`, whose owner calls `renew` and fills it again from the log.
    """

    def __init__(self, path: str | None, log_id: str) -> None:
        self._disk = threading.RLock()  # the connection; never taken by who holds `_ready`
        self._ready = threading.Condition()  # what is not written yet, and the counts
        self._pending: dict[str, Gone] = {}
        self._removed: dict[str, Rollout] = {}  # rows to be deleted; each removal has an object of its own
        self._complete_to: Mark = (0, b"")
        self._counts: dict[str, list[int]] | None = None
        self._closed = False
        self._refused = False
        self._path = path
        self._log_id = log_id
        self.broken = False
        """The table cannot be read; until `renew` only what is in memory is answered."""
        self.on_broken: Callable[[], None] | None = None
        """Called once when the table turns out to be unreadable, perhaps under locks: it must not wait for any."""
        self.whole = True
        """False while an earlier part of the log has not been looked at yet: then no position is noted."""
        self.moves = 0
        """How often rollouts moved between memory and the table: who read both sees whether that was in between."""
        self._looking = threading.Lock()  # the second connection; who holds it may wait for a node
        self._missing: tuple[str, ...] = ()
        self._changed: set[int] = set()
        self._open()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Write from a thread from now on. Not during a rebuild, where it would only compete with the fold. Idempotent."""
        with self._disk:
            try:
                for name in self._missing:
                    self._db.execute(ORDERS[name])
            except sqlite3.Error as error:
                self.fail(str(error))
            self._missing = ()
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._write_on, name="agl-index", daemon=True)
        self._thread.start()

    # The file

    def _open(self) -> None:
        """Open the table of the file, an empty one where it does not fit; one in memory where there can be no file."""
        self._look: sqlite3.Connection | None = None
        path = self._path
        if path is not None:
            known = os.path.lexists(path)
            try:
                self._db = _connect(path)
                if not self._fits():
                    self._db.close()
                    raise sqlite3.DatabaseError("it is of another log or another release")
            except (OSError, ValueError, StorageError, sqlite3.Error) as error:
                if known:
                    logger.warning("The index of finished rollouts %s is made anew from the log: %s", path, error)
                try:
                    _delete(path)
                    self._db = _connect(path)
                    self._begin_anew()
                except (OSError, StorageError, sqlite3.Error) as worse:
                    logger.warning("The index of finished rollouts stays in memory, %s cannot be made: %s", path, worse)
                    path = None
        if path is None:
            self._db = _connect(None)
            self._begin_anew()
            return
        self._look = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._look.execute("PRAGMA query_only = ON")

    def _fits(self) -> bool:
        """Whether the file is this log's, of this form, and has these tables and nothing else (such as triggers)."""
        if not has_these_tables_only(self._db):
            return False
        mark = self.mark
        return self._meta("log_id") == self._log_id and self._meta("form") == FORM and mark[0] >= 0

    def _begin_anew(self) -> None:
        db = self._db
        self._missing = ()
        db.execute("BEGIN")
        for table in ("rollouts", "bodies", "meta"):
            db.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in (_META, *SCHEMA.split(";"), *ORDERS.values()):
            db.execute(statement)
        db.executemany("INSERT INTO meta VALUES (?, ?)", [("log_id", self._log_id), ("form", FORM)])
        db.execute("COMMIT")

    def _meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    @property
    def mark(self) -> Mark:
        """Everything archived by records below this position is in the table; with the fold's fingerprint there."""
        with self._disk:
            return int(self._meta("position") or 0), bytes.fromhex(self._meta("fingerprint") or "")

    @property
    def position(self) -> int:
        """The position of `mark`."""
        return self.mark[0]

    def clear(self) -> None:
        """Begin anew, to be filled from the first record.

        The orders are made by `start`: to sort many rows once takes a third of the time of inserting each in its place. A
        file that is left without them does not fit, and is made anew.
        """
        with self._disk:
            try:
                self._begin_anew()
                for name in ORDERS:
                    self._db.execute(f"DROP INDEX {name}")
                self._missing = tuple(ORDERS)
            except sqlite3.Error as error:
                self.fail(str(error))
            self._forget()

    def _forget(self) -> None:
        with self._ready:
            self._pending.clear()
            self._removed.clear()
            self._counts = None
            self._complete_to = (0, b"")
            self.moves += 1

    def fail(self, why: str) -> None:
        """The table is not what was written: it is not asked any more until `renew`."""
        with self._ready:
            if self.broken or self._closed:
                return
            self.broken = self._refused = True
            self.whole = False
            self.moves += 1
        logger.warning("The index of finished rollouts cannot be read (%s); it is made anew from the log", why)
        if self.on_broken is not None:
            self.on_broken()

    def renew(self) -> None:
        """Replace a broken table by an empty one. What is in memory and not written yet stays."""
        with self._looking, self._disk:
            for db in (self._look, self._db):
                if db is not None:
                    with contextlib.suppress(sqlite3.Error):  # the file goes away
                        db.close()
            if self._path is not None:
                with contextlib.suppress(OSError):  # what cannot be deleted is found not to fit, and not used
                    _delete(self._path)
            self._open()
            with self._ready:
                self._removed.clear()
                self._counts = None
                self._complete_to = (0, b"")
                self.broken = self._refused = False
                self.moves += 1

    # Writing

    def add(self, gone: Iterable[Gone], position: int, fingerprint: bytes) -> None:
        """Keep these rollouts; all that was archived by records below `position` was added.

        Waits for the disk only before `start`.
        """
        with self._ready:
            for one in gone:
                self._pending[one[0].rollout_id] = one
                self._changed.add(group_of(one[0].number))
            self._complete_to = (position, fingerprint)
            if len(self._pending) >= BATCH:
                self._ready.notify()
            # Once there is a thread that writes, nobody waits for it: the caller may hold the node's lock.
            overfull = len(self._pending) > MOST_PENDING and not self._refused and self._thread is None
        if overfull:
            self.flush()

    def take_changed(self) -> set[int]:
        """The groups of numbers in which rollouts came or went since this was asked last."""
        with self._ready:
            changed, self._changed = self._changed, set()
        return changed

    def remove(self, rollout: Rollout, position: int, fingerprint: bytes) -> None:
        """The rollout is hot again by the record before `position`. Its row goes with the next write."""
        with self._ready:
            self._pending.pop(rollout.rollout_id, None)
            self._removed[rollout.rollout_id] = rollout
            self._changed.add(group_of(rollout.number))
            self._complete_to = (position, fingerprint)
            self.moves += 1

    def _write_on(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._closed or len(self._pending) >= BATCH)
                if self._closed:
                    return
            if not self.flush():
                with self._ready:
                    self._ready.wait_for(lambda: self._closed, RETRY_SECONDS)

    def flush(self, position: int = 0, fingerprint: bytes = b"") -> bool:
        """Write what is not written yet, and note that the table is complete up to `position` (if given).

        False where the disk refused: nothing was written, the rollouts stay in memory until it takes them.
        """
        with self._disk:
            with self._ready:
                if self.broken:
                    return False
                batch = list(self._pending.items())
                removed = dict(self._removed)
                # Kept, or the next flush would note less: a snapshot at `position` is of no use to an index behind it.
                complete_to = self._complete_to = max(self._complete_to, (position, fingerprint))
            try:
                self._write(batch, [one.number for one in removed.values()], complete_to)
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):  # the connection is replaced where it cannot go on
                    self._db.rollback()
                self._refused = True
                if not any(word in str(error) for word in _TRANSIENT):
                    self.fail(str(error))
                    return False
                logger.warning("The index of finished rollouts cannot be written (%s); they stay in memory", error)
                return False
            self._refused = False
            with self._ready:
                for rollout_id, one in batch:
                    if self._pending.get(rollout_id) is one:
                        del self._pending[rollout_id]
                for rollout_id, one in removed.items():
                    if self._removed.get(rollout_id) is one:
                        del self._removed[rollout_id]
                if removed:
                    self._counts = None
                self._count(batch)
                self.moves += bool(batch or removed)
        return True

    def _write(self, batch: list[tuple[str, Gone]], removed: list[int], complete_to: Mark) -> None:
        db = self._db
        db.execute("BEGIN")
        for table in ("rollouts", "bodies"):
            db.executemany(f"DELETE FROM {table} WHERE number = ?", [(number,) for number in removed])
        _put(db, "rollouts", ROW, [row_of(one) for _, (one, _) in batch])
        bodies = [(one.number, body) for _, (one, body) in batch]
        _put(db, "bodies", "(?, ?)", bodies)
        if self.whole:
            marks = [("position", str(complete_to[0])), ("fingerprint", complete_to[1].hex())]
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", marks)
        db.execute("COMMIT")

    def _count(self, batch: list[tuple[str, Gone]]) -> None:
        if self._counts is not None:
            for _, (one, _) in batch:
                both = self._counts.setdefault(one.status, [0, 0])
                both[0] += 1
                both[1] += len(one.attempts)

    # Reading

    def body(self, rollout_id: str, expected: bytes | None) -> bytes | None:
        """The packed bytes, as the log archived them; `expected` is the fold's hash of them.

        None where the rollout is not here, or not these bytes: then the table is given up.
        """
        with self._ready:
            pending = self._pending.get(rollout_id)
            gone = rollout_id in self._removed or self.broken
        if pending is not None:
            return pending[1]
        if gone:
            return None
        query = "SELECT body FROM rollouts JOIN bodies USING (number) WHERE rollout_id = ?"
        try:
            with self._disk:
                row = self._db.execute(query, (rollout_id,)).fetchone()
            body = None if row is None else bytes(row[0])
        except (sqlite3.Error, TypeError) as error:
            self.fail(str(error))
            return None
        if expected is None or (body is not None and hash_of(body) == expected):
            return body
        if self.whole:
            self.fail(f"rollout {rollout_id} is not what was archived")
        return None

    def bodies_of(self, group: int) -> list[bytes]:
        """The packed rollouts of a group that are written, in order of their numbers; none where they cannot be read."""
        query = "SELECT body FROM bodies WHERE number > ? AND number <= ? ORDER BY number"
        try:
            with self._disk:
                rows = self._db.execute(query, (group * GROUP, (group + 1) * GROUP)).fetchall()
            return [bytes(body) for (body,) in rows]
        except (sqlite3.Error, TypeError) as error:
            self.fail(str(error))
            return []

    def get(self, rollout_id: str, expected: bytes | None) -> Rollout | None:
        """The rollout, unpacked; a copy. `expected` as for `body`."""
        body = self.body(rollout_id, expected)
        return None if body is None else unpack(body)

    def pending(self) -> tuple[int, list[Rollout]]:
        """(`moves`, the rollouts that are not in the table yet), as they are at one moment."""
        with self._ready:
            return self.moves, [rollout for rollout, _ in self._pending.values()]

    @contextmanager
    def reading(self, still: bool = False) -> Generator[ArchiveRows, None, None]:
        """The table as it is at one moment, and `moves` of that moment. Raises `Rebuilding` where it cannot be read.

        A file is read beside its writer, by one thread at a time. A table in memory has one connection: nobody
        writes it meanwhile. So it is with `still`, and for that the node's lock has to be held already.
        """
        try:
            if self._look is None or still:
                with self._disk:
                    yield ArchiveRows(self._db, self._settled(), self._counted())
                return
            with self._looking:
                look = self._look
                look.execute("BEGIN")
                try:
                    with self._disk:  # between two flushes, so that the table and `moves` are of one moment
                        moves, counts = self._settled(), self._counted()
                        look.execute("SELECT 1 FROM meta").fetchone()
                    yield ArchiveRows(look, moves, counts)
                finally:
                    look.rollback()
        except sqlite3.Error as error:
            self.fail(str(error))
            raise Rebuilding("the index of finished rollouts is made anew; try again in a moment") from error

    def _settled(self) -> int:
        """`moves` of a moment at which no row waits to be deleted; under `_disk`."""
        while True:
            with self._ready:
                if self.broken:
                    raise Rebuilding("the index of finished rollouts is made anew; try again in a moment")
                if not self._removed:
                    return self.moves
            if not self.flush() and not self.broken:
                raise Rebuilding("the index of finished rollouts cannot be written at the moment; try again")

    @property
    def beside(self) -> bool:
        """Whether `reading` keeps nobody from writing."""
        return self._look is not None

    def _counted(self) -> dict[str, tuple[int, int]]:
        """Status -> (rollouts, attempts) of the table; under `_disk`. It is counted once, then the numbers are kept."""
        if self._counts is None:
            query = "SELECT status, count(*), sum(attempts) FROM rollouts GROUP BY status"
            counted = {str(status): [int(rollouts), int(tries)] for status, rollouts, tries in self._db.execute(query)}
            with self._ready:
                self._counts = counted
        return {status: (both[0], both[1]) for status, both in self._counts.items()}

    def counts(self) -> dict[str, tuple[int, int]]:
        """Status -> (rollouts, attempts), written or not. Raises `Rebuilding` where the table cannot be read."""
        with self._disk, self.reading(still=True) as table:
            counts = dict(table.counts)
            with self._ready:
                for rollout, _ in self._pending.values():
                    rollouts, tries = counts.get(rollout.status, (0, 0))
                    counts[rollout.status] = (rollouts + 1, tries + len(rollout.attempts))
        return counts

    def holds(self, rollouts: int) -> bool:
        """Whether the table has so many rollouts, each with its body. Everything was written before."""
        try:
            with self._disk:
                query = "SELECT (SELECT count(*) FROM rollouts), (SELECT count(*) FROM bodies)"
                return self._db.execute(query).fetchone() == (rollouts, rollouts)
        except sqlite3.Error as error:
            self.fail(str(error))
            return False

    def close(self) -> None:
        """Write what is left and close the file. Idempotent."""
        with self._ready:
            if self._closed:
                return
            self._closed = True
            self._ready.notify()
        if self._thread is not None:
            self._thread.join()
        self.flush()
        with self._looking:
            if self._look is not None:
                self._look.close()
        with self._disk:
            self._db.close()


def _connect(path: str | None) -> sqlite3.Connection:
    """Open the file, or a table in memory. A symbolic link is not followed: what it names is not ours to write."""
    if path is not None:
        make_private(path)
    db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA journal_mode = WAL" if path else "PRAGMA journal_mode = MEMORY")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -32000")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _delete(path: str) -> None:
    """Remove the file and what SQLite keeps beside it."""
    for name in (path, f"{path}-wal", f"{path}-shm", f"{path}-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def has_these_tables_only(db: sqlite3.Connection) -> bool:
    """Whether a file has the tables of an index and nothing else: a trigger or a view would run SQL of somebody else."""
    query = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    with contextlib.closing(sqlite3.connect(":memory:")) as made:
        made.executescript(";".join((_META, SCHEMA, *ORDERS.values())))
        return db.execute(query).fetchall() == made.execute(query).fetchall()


def index_path(log: Log) -> str | None:
    """The archive index lies beside a log file, or in the folder where a log on a broker keeps its copies."""
    path = getattr(log, "path", None)
    folder = getattr(log, "state_folder", None)
    if folder is not None:
        return str(folder / "index.db")
    return None if path is None else f"{path}.index"


def read_bodies(log: Log, rollout_ids: Sequence[str]) -> dict[str, bytes]:
    """Packed rollouts of the index beside the log, for a reader of the log; without one that can be read, none."""
    path = index_path(log)
    if path is None or not Path(path).is_file():
        return {}
    written = Path(f"{path}-wal")
    # Without a write-ahead log no process writes it, and SQLite needs no file beside it.
    still = "" if written.is_file() and written.stat().st_size else "&immutable=1"
    try:
        db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro{still}", uri=True)
        try:
            if not has_these_tables_only(db):
                return {}
            meta = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('form', 'log_id')").fetchall())
            if meta != {"form": FORM, "log_id": log.log_id}:  # its bytes are checked one by one, by the fold's hashes
                return {}
            rows = ArchiveRows(db, 0)
            ids = {number: rollout_id for _, number, rollout_id, _ in rows.named(rollout_ids, None)}
            bodies: dict[int, Any] = dict(rows.bodies(list(ids)))  # whatever a damaged file holds
            return {ids[number]: body for number, body in bodies.items() if isinstance(body, bytes)}
        finally:
            db.close()
    except sqlite3.Error:  # whatever it is, the log has everything
        return {}
