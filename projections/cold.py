"""The cold index: rollouts that left the fold's hot state, packed, in a SQLite table of their own.

It is a projection, not a source: everything in it follows from the log, so it is written without waiting for the disk
and rebuilt where it is missing. Beside a log file it lies at `<file>.index`; a log in memory has it in memory. A thread
of its own writes it, so that nobody waits for it: what is not written yet is read from memory.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence

from ..core.archival import unpack
from ..core.state import Rollout

logger = logging.getLogger(__name__)

FORM = "2"
"""Form of the tables; an index of another form is thrown away and made again from the log."""
_SCHEMA = """
CREATE TABLE rollouts (
    number INTEGER PRIMARY KEY, rollout_id TEXT NOT NULL, status TEXT NOT NULL, attempts INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE UNIQUE INDEX by_id ON rollouts (rollout_id);
CREATE INDEX by_status ON rollouts (status, attempts);
"""
PAGE = 500
BATCH = 2_000
"""Rollouts that are written together."""
MOST_PENDING = 20_000
"""More than that in memory, and who adds waits for the disk, unless it refuses."""
RETRY_SECONDS = 5.0
"""How long the writer waits after the disk refused a batch."""

Gone = tuple[Rollout, bytes]
"""A rollout that left hot state, and its packed bytes."""


class ColdIndex:
    """Packed rollouts by id and in order of creation. Thread-safe."""

    def __init__(self, path: str | None, log_id: str) -> None:
        self._disk = threading.RLock()  # the connection; never taken by who holds `_ready`
        self._ready = threading.Condition()  # what is not written yet, and the counts
        self._pending: dict[str, Gone] = {}
        self._complete_to = 0
        self._counts: dict[str, list[int]] | None = None
        self._closed = False
        self._refused = False
        self.whole = True
        """False while an earlier part of the log has not been looked at yet: then no position is noted."""
        self.moves = 0
        """How often rollouts moved from memory to the table: who read both sees whether that was in between."""
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL" if path else "PRAGMA journal_mode = MEMORY")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("PRAGMA cache_size = -32000")
        self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT)")
        if self._meta("log_id") != log_id or self._meta("form") != FORM:  # another log lay here, or another release's
            self._begin_anew(log_id)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Write from a thread from now on. Not during a rebuild, where it would only compete with the fold."""
        self._thread = threading.Thread(target=self._write_on, name="agl-index", daemon=True)
        self._thread.start()

    def _begin_anew(self, log_id: str) -> None:
        self._db.execute("BEGIN")
        self._db.execute("DROP TABLE IF EXISTS rollouts")
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        self._db.execute("DELETE FROM meta")
        self._db.executemany("INSERT INTO meta VALUES (?, ?)", [("log_id", log_id), ("form", FORM)])
        self._db.execute("COMMIT")

    def _meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    @property
    def position(self) -> int:
        """Everything archived by records below this position is in the table."""
        with self._disk:
            return int(self._meta("position") or 0)

    def clear(self) -> None:
        """Begin anew, for a rebuild from the first record."""
        with self._disk:
            self._begin_anew(self._meta("log_id") or "")
            with self._ready:
                self._pending.clear()
                self._counts = None
                self._complete_to = 0

    # Writing

    def add(self, gone: Iterable[Gone], position: int) -> None:
        """Keep these rollouts; all that was archived by records below `position` was added. Seldom waits for the disk."""
        with self._ready:
            for one in gone:
                self._pending[one[0].rollout_id] = one
            self._complete_to = position
            if len(self._pending) >= BATCH:
                self._ready.notify()
            overfull = len(self._pending) > MOST_PENDING and not self._refused
        if overfull:
            self.flush()

    def _write_on(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._closed or len(self._pending) >= BATCH)
                if self._closed:
                    return
            if not self.flush():
                with self._ready:
                    self._ready.wait_for(lambda: self._closed, RETRY_SECONDS)

    def flush(self, position: int = 0) -> bool:
        """Write what is not written yet, and note that the table is complete up to `position` (if given).

        False where the disk refused: nothing was written, the rollouts stay in memory until it takes them.
        """
        with self._disk:
            with self._ready:
                batch = list(self._pending.items())
                # Kept, or the next flush would note less: a snapshot at `position` is of no use to an index behind it.
                complete_to = self._complete_to = max(self._complete_to, position)
            rows = [(one.number, one.rollout_id, one.status, len(one.attempts), body) for _, (one, body) in batch]
            try:
                self._db.execute("BEGIN")
                self._db.executemany("INSERT OR REPLACE INTO rollouts VALUES (?, ?, ?, ?, ?)", rows)
                if self.whole:
                    self._db.execute("INSERT OR REPLACE INTO meta VALUES ('position', ?)", (str(complete_to),))
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._refused = True
                logger.warning("The index of finished rollouts cannot be written (%s); they stay in memory", error)
                return False
            self._refused = False
            with self._ready:
                for rollout_id, one in batch:
                    if self._pending.get(rollout_id) is one:
                        del self._pending[rollout_id]
                self._count(batch)
                self.moves += 1
        return True

    def _count(self, batch: list[tuple[str, Gone]]) -> None:
        if self._counts is not None:
            for _, (one, _) in batch:
                both = self._counts.setdefault(one.status, [0, 0])
                both[0] += 1
                both[1] += len(one.attempts)

    def remove(self, rollout_id: str) -> None:
        """The rollout is hot again. Waits for a batch that is being written: it happens seldom."""
        with self._disk:
            self._db.execute("DELETE FROM rollouts WHERE rollout_id = ?", (rollout_id,))
            with self._ready:
                self._pending.pop(rollout_id, None)
                self._counts = None

    # Reading

    def body(self, rollout_id: str) -> bytes | None:
        """The packed bytes, as the log archived them."""
        with self._ready:
            pending = self._pending.get(rollout_id)
        if pending is not None:
            return pending[1]
        with self._disk:
            row = self._db.execute("SELECT body FROM rollouts WHERE rollout_id = ?", (rollout_id,)).fetchone()
        return None if row is None else bytes(row[0])

    def get(self, rollout_id: str) -> Rollout | None:
        """The rollout, unpacked; a copy."""
        body = self.body(rollout_id)
        return None if body is None else unpack(body)

    def pending(self) -> tuple[int, list[Rollout]]:
        """(`moves`, the rollouts that are not in the table yet), as they are at one moment."""
        with self._ready:
            return self.moves, [rollout for rollout, _ in self._pending.values()]

    def scan(self, rollout_ids: Sequence[str] | None = None, statuses: Sequence[str] | None = None) -> Iterator[Rollout]:
        """Rollouts of the table in order of creation, of these ids and statuses (None: all), page by page."""
        if rollout_ids is not None:
            found = [rollout for rollout in map(self.get, dict.fromkeys(rollout_ids)) if rollout is not None]
            yield from sorted(
                (one for one in found if statuses is None or one.status in statuses), key=lambda one: one.number
            )
            return
        where = "" if statuses is None else f" AND status IN ({','.join('?' * len(statuses))})"
        last = -1
        while True:
            with self._disk:
                rows = self._db.execute(
                    f"SELECT number, body FROM rollouts WHERE number > ?{where} ORDER BY number LIMIT {PAGE}",
                    (last, *(statuses or ())),
                ).fetchall()
            for number, body in rows:
                last = int(number)
                rollout = unpack(bytes(body))
                if rollout is not None:
                    yield rollout
            if len(rows) < PAGE:
                return

    def counts(self) -> dict[str, tuple[int, int]]:
        """Status -> (rollouts, attempts), written or not. The table is counted once, then the numbers are kept."""
        with self._disk:
            if self._counts is None:
                query = "SELECT status, count(*), sum(attempts) FROM rollouts GROUP BY status"
                counted = {str(status): [int(rollouts), int(tries)] for status, rollouts, tries in self._db.execute(query)}
                with self._ready:
                    self._counts = counted
            with self._ready:
                counts = {status: (both[0], both[1]) for status, both in (self._counts or {}).items()}
                for rollout, _ in self._pending.values():
                    rollouts, tries = counts.get(rollout.status, (0, 0))
                    counts[rollout.status] = (rollouts + 1, tries + len(rollout.attempts))
        return counts

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
        with self._disk:
            self._db.close()
