"""The cold index: rollouts that left the fold's hot state, packed, in a SQLite table of their own.

It is a projection, not a source: everything in it follows from the log, so it is written without waiting for the disk
and rebuilt where it is missing. Beside a log file it lies at `<file>.index`; a log in memory has it in memory. A thread
of its own writes it, so that nobody waits for it: what is not written yet is read from memory.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager

from ..core.archival import unpack
from ..core.state import Rollout
from .cold_rows import ROW, SCHEMA, ColdRows, row_of

logger = logging.getLogger(__name__)

FORM = "3"
"""Form of the tables; an index of another form is thrown away and made again from the log."""
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
        self._looking = threading.Lock()  # the second connection; who holds it may wait for a node
        self._look: sqlite3.Connection | None = None
        if path:
            self._look = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._look.execute("PRAGMA query_only = ON")
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Write from a thread from now on. Not during a rebuild, where it would only compete with the fold."""
        self._thread = threading.Thread(target=self._write_on, name="agl-index", daemon=True)
        self._thread.start()

    def _begin_anew(self, log_id: str) -> None:
        self._db.execute("BEGIN")
        for table in ("rollouts", "bodies"):
            self._db.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in SCHEMA.split(";"):
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
                self.moves += 1

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
            try:
                self._db.execute("BEGIN")
                self._db.executemany(f"INSERT OR REPLACE INTO rollouts VALUES {ROW}", [row_of(one) for _, (one, _) in batch])
                bodies = [(one.number, body) for _, (one, body) in batch]
                self._db.executemany("INSERT OR REPLACE INTO bodies VALUES (?, ?)", bodies)
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
                self.moves += bool(batch)
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
            found = self._db.execute("SELECT number FROM rollouts WHERE rollout_id = ?", (rollout_id,)).fetchall()
            for table in ("rollouts", "bodies"):
                self._db.executemany(f"DELETE FROM {table} WHERE number = ?", found)
            with self._ready:
                self._pending.pop(rollout_id, None)
                self._counts = None
                self.moves += 1

    # Reading

    def body(self, rollout_id: str) -> bytes | None:
        """The packed bytes, as the log archived them."""
        with self._ready:
            pending = self._pending.get(rollout_id)
        if pending is not None:
            return pending[1]
        with self._disk:
            row = self._db.execute(
                "SELECT body FROM rollouts JOIN bodies USING (number) WHERE rollout_id = ?", (rollout_id,)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def get(self, rollout_id: str) -> Rollout | None:
        """The rollout, unpacked; a copy."""
        body = self.body(rollout_id)
        return None if body is None else unpack(body)

    def pending(self) -> tuple[int, list[Rollout]]:
        """(`moves`, the rollouts that are not in the table yet), as they are at one moment."""
        with self._ready:
            return self.moves, [rollout for rollout, _ in self._pending.values()]

    @contextmanager
    def reading(self, still: bool = False) -> Generator[ColdRows, None, None]:
        """The table as it is at one moment, and `moves` of that moment.

        A file is read beside whoever writes it, by one thread at a time. A table in memory has one connection: nobody
        writes it meanwhile. So it is with `still`, and for that the node's lock has to be held already.
        """
        if self._look is None or still:
            with self._disk:
                yield ColdRows(self._db, self.moves, self._counted())
            return
        with self._looking:
            self._look.execute("BEGIN")
            try:
                with self._disk:  # between two flushes, so that the table and `moves` are of one moment
                    moves, counts = self.moves, self._counted()
                    self._look.execute("SELECT 1 FROM meta").fetchone()
                yield ColdRows(self._look, moves, counts)
            finally:
                self._look.execute("COMMIT")

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
        """Status -> (rollouts, attempts), written or not."""
        with self._disk:
            counts = self._counted()
            with self._ready:
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
        with self._looking:
            if self._look is not None:
                self._look.close()
        with self._disk:
            self._db.close()
