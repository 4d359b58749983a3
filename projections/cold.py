"""The cold index: rollouts that left the fold's hot state, packed, in a SQLite table of their own.

It is a projection, not a source: everything in it follows from the log, so it is written without waiting for the disk
and rebuilt where it is missing. Beside a log file it lies at `<file>.index`; a log in memory has it in memory.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence

from ..core.archival import unpack
from ..core.state import Rollout

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS rollouts (
    rollout_id TEXT PRIMARY KEY, number INTEGER NOT NULL, status TEXT NOT NULL, attempts INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_number ON rollouts (number);
"""
PAGE = 500


class ColdIndex:
    """Packed rollouts by id and in order of creation. Thread-safe."""

    def __init__(self, path: str | None, log_id: str) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL" if path else "PRAGMA journal_mode = MEMORY")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(_SCHEMA)
        if self._meta("log_id") != log_id:  # another log lay here: nothing of it is ours
            self._db.execute("DELETE FROM rollouts")
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('log_id', ?)", (log_id,))
            self._db.execute("DELETE FROM meta WHERE key = 'position'")

    def _meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    @property
    def position(self) -> int:
        """Everything archived by records below this position is in the index."""
        with self._lock:
            return int(self._meta("position") or 0)

    def clear(self) -> None:
        """Begin anew, for a rebuild from the first record."""
        with self._lock:
            self._db.execute("DELETE FROM rollouts")
            self._db.execute("DELETE FROM meta WHERE key = 'position'")

    def add(self, gone: Iterable[tuple[Rollout, bytes]], position: int) -> bool:
        """Keep these rollouts, and note that the index is complete up to `position`.

        False where the disk refused: nothing was kept, the caller holds them in memory and comes again.
        """
        rows = [(one.rollout_id, one.number, one.status, len(one.attempts), body) for one, body in gone]
        with self._lock:
            try:
                self._db.execute("BEGIN")
                self._db.executemany("INSERT OR REPLACE INTO rollouts VALUES (?, ?, ?, ?, ?)", rows)
                self._db.execute("INSERT OR REPLACE INTO meta VALUES ('position', ?)", (str(position),))
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                logger.warning("The index of finished rollouts cannot be written (%s); they stay in memory", error)
                return False
        return True

    def remove(self, rollout_id: str) -> None:
        """The rollout is hot again."""
        with self._lock:
            self._db.execute("DELETE FROM rollouts WHERE rollout_id = ?", (rollout_id,))

    def body(self, rollout_id: str) -> bytes | None:
        """The packed bytes, as the log archived them."""
        with self._lock:
            row = self._db.execute("SELECT body FROM rollouts WHERE rollout_id = ?", (rollout_id,)).fetchone()
        return None if row is None else bytes(row[0])

    def get(self, rollout_id: str) -> Rollout | None:
        """The rollout, unpacked; a copy."""
        body = self.body(rollout_id)
        return None if body is None else unpack(body)

    def scan(self, rollout_ids: Sequence[str] | None = None, statuses: Sequence[str] | None = None) -> Iterator[Rollout]:
        """Rollouts in order of creation, of these ids and statuses (None: all), page by page."""
        if rollout_ids is not None:
            found = [rollout for rollout in map(self.get, dict.fromkeys(rollout_ids)) if rollout is not None]
            yield from sorted(
                (one for one in found if statuses is None or one.status in statuses), key=lambda one: one.number
            )
            return
        where = "" if statuses is None else f" AND status IN ({','.join('?' * len(statuses))})"
        last = -1
        while True:
            with self._lock:
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
        """Status -> (rollouts, attempts)."""
        with self._lock:
            rows = self._db.execute("SELECT status, count(*), sum(attempts) FROM rollouts GROUP BY status").fetchall()
        return {str(status): (int(rollouts), int(attempts)) for status, rollouts, attempts in rows}

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._db.close()
