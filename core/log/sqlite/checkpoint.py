"""Moving pages of the write-ahead log into the file, beside the commits, so that no commit waits for it."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from .schema import Row

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
