"""The copy of a keyed topic on this machine: Kafka finds records by offset only, a store asks for them by key.

A copy writes every partition of one topic to a SQLite file that can be made anew at any time. A
question first asks the broker where the partition ends and waits until the copy is there, so it shows everything that
was acknowledged before it was asked. Of a compacted topic it keeps the newest record of each key, as the broker will.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ...errors import LogClosed, StorageError
from ..append_checks import decode_headers, encode_headers
from ..interface import Record
from ..local.follower import Feed
from ..topics import TOPICS
from .address import KafkaAddress
from .aiokafka_api import KafkaError, OffsetOutOfRangeError, TopicPartition
from .end_offsets import Ends
from .partition_reader import LONG_FETCH_MS, make_consumer, record_in, stop_quietly

logger = logging.getLogger(__name__)

COPY_RECORDS = 8192
POLL_MS = 1000
RETRY_SECONDS = 0.5
REACH_SECONDS = 60.0
"""How long a question waits for a copy that has to read on."""
FOLDER_PREFIX = "agl-kafka-"
_LOCK = "owner.lock"
_COLUMNS = "offset, ts, key, headers, value"


class KeyedTable:
    """The SQLite side: written by one thread, read by any. A file that cannot be read is thrown away."""

    def __init__(self, path: Path, topic: str, partitions: int, log_id: str) -> None:
        self._path = path
        self._topic = topic
        self._partitions = partitions
        self._log_id = log_id
        self._compacted = TOPICS[topic].compacted
        self._lock = threading.Lock()
        self.damaged = False
        """Set by a read that failed: the copy has to be made anew."""
        try:
            self._db = self._open()
        except sqlite3.Error as error:
            logger.warning("The copy of %s in %s cannot be used (%s); it is made anew.", topic, path, error)
            self._remove()
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(str(self._path), check_same_thread=False, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            db.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT)")
            row = db.execute("SELECT value FROM meta WHERE name = 'log_id'").fetchone()
            if row is None or row[0] != self._log_id:
                for part in range(self._partitions):
                    db.execute(f"DROP TABLE IF EXISTS p{part}")
                db.execute("DELETE FROM meta")
                db.execute("INSERT INTO meta VALUES ('log_id', ?)", (self._log_id,))
            for part in range(self._partitions):
                db.execute(
                    f"CREATE TABLE IF NOT EXISTS p{part} (offset INTEGER PRIMARY KEY, ts INTEGER NOT NULL, "
                    "key TEXT NOT NULL, headers BLOB NOT NULL, value BLOB NOT NULL)"
                )
                db.execute(f"CREATE INDEX IF NOT EXISTS p{part}_by_key ON p{part} (key, offset)")
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def renew(self) -> None:
        """Throw the copy away and begin an empty one. Raises `sqlite3.Error` or `OSError` where the disk takes none."""
        with self._lock:
            self._db.close()
            self._remove()
            self._db = self._open()
            self.damaged = False

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection, None, None]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                self.damaged = True
                raise StorageError(f"the copy of {self._topic} cannot be read ({error}); it is being made anew") from error

    def position(self, partition: int) -> int | None:
        """Up to which offset the partition was copied; None for one that was not begun."""
        with self._lock:
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (f"p{partition}",)).fetchone()
        return None if row is None else int(row[0])

    def write(self, batches: Mapping[int, Sequence[Record]], positions: Mapping[int, int]) -> None:
        """Copy records and note the positions, together."""
        with self._lock, self._transaction():
            for part, records in batches.items():
                rows = [
                    (one.offset, one.timestamp_us, one.key, encode_headers(one.headers), one.value) for one in records
                ]
                self._db.executemany(f"INSERT OR REPLACE INTO p{part} VALUES (?, ?, ?, ?, ?)", rows)
                if self._compacted:
                    newest = {one.key: one.offset for one in records}
                    self._db.executemany(f"DELETE FROM p{part} WHERE key = ? AND offset < ?", list(newest.items()))
            marks = [(f"p{part}", str(position)) for part, position in positions.items()]
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", marks)

    @contextmanager
    def _transaction(self) -> Generator[None, None, None]:
        self._db.execute("BEGIN")
        try:
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def clear(self, partition: int) -> None:
        """Forget a partition whose offsets are not those of the topic any more."""
        with self._lock:
            self._db.execute(f"DELETE FROM p{partition}")
            self._db.execute("DELETE FROM meta WHERE name = ?", (f"p{partition}",))

    def drop_below(self, partition: int, offset: int) -> None:
        """Forget what the broker has forgotten."""
        with self._lock:
            self._db.execute(f"DELETE FROM p{partition} WHERE offset < ?", (offset,))

    def select(self, partition: int, where: str, values: tuple[object, ...], limit: int | None) -> list[Record]:
        """Records in order of offset."""
        query = f"SELECT {_COLUMNS} FROM p{partition} WHERE {where} ORDER BY offset LIMIT ?"
        with self._reading() as db:
            rows = db.execute(query, (*values, -1 if limit is None else limit)).fetchall()
        return [
            Record(self._topic, partition, offset, key, value, stamp, decode_headers(headers))
            for offset, stamp, key, headers, value in rows
        ]

    def first(self, partition: int) -> int | None:
        """The lowest offset that is kept; None where there is none."""
        with self._reading() as db:
            row = db.execute(f"SELECT min(offset) FROM p{partition}").fetchone()
        return None if row[0] is None else int(row[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


class KeyedCopy:
    """One topic, followed into its table; lives on the log's loop, is asked by threads."""

    def __init__(
        self, address: KafkaAddress, topic: str, partitions: int, ends: Ends, table: KeyedTable
    ) -> None:
        self.topic = topic
        self.table = table
        self.closed = False
        self._address = address
        self._ends = ends
        self._places = [TopicPartition(address.topic(topic), part) for part in range(partitions)]
        self._positions = {part: table.position(part) or 0 for part in range(partitions)}
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"agl-copy-{topic}")
        self.feeds = {part: self._feed(part) for part in range(partitions)}
        self.task = asyncio.get_running_loop().create_task(self._run())

    def _feed(self, part: int) -> Feed:
        return Feed(
            f"{self.topic}[{part}]",
            self._positions[part],
            lambda offset, most: self.table.select(part, "offset >= ?", (offset,), most),
            lambda: self._positions[part],
        )

    async def reach(self, part: int) -> int:
        """Wait until everything that was acknowledged before this call is here; return the end it was asked for."""
        end = await self._ends.end(self._places[part])
        if self._positions[part] < end:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((part, end, future))
            try:
                await asyncio.wait_for(future, REACH_SECONDS)
            except asyncio.TimeoutError:
                raise StorageError(
                    f"the copy of {self.topic} on this machine is behind (at {self._positions[part]} of {end}); try again"
                ) from None
        return end

    async def _run(self) -> None:
        consumer: Any = None
        while not self.closed:
            try:
                if self.table.damaged:
                    raise sqlite3.DatabaseError("a read failed")
                if consumer is None:
                    # A fetch that waits for some partitions holds up the next one of another.
                    more = {"fetch_max_wait_ms": LONG_FETCH_MS} if len(self._places) == 1 else {}
                    consumer = make_consumer(self._address, **more)
                    await consumer.start()
                    consumer.assign(self._places)
                    await self._seek(consumer)
                try:
                    await self._step(consumer)
                except OffsetOutOfRangeError as error:
                    self._clear(error.args[0] if error.args else self._places)
                    await self._seek(consumer)
            except sqlite3.Error as error:
                await self._renew(error)
                await stop_quietly(consumer)
                consumer = None
            except (KafkaError, OSError) as error:
                logger.warning("Copying %s failed (%s); it goes on as soon as the broker answers.", self.topic, error)
                await stop_quietly(consumer)
                consumer = None
                await asyncio.sleep(RETRY_SECONDS)
            except asyncio.CancelledError:
                break
        await stop_quietly(consumer)

    def _clear(self, lost: Any) -> None:
        for place in self._places:
            if place in lost:
                logger.warning("%s[%d] is not what it was; its copy is made anew.", place.topic, place.partition)
                self.table.clear(place.partition)
                self._positions[place.partition] = 0

    async def _renew(self, error: sqlite3.Error) -> None:
        """The copy follows from the topic: one that cannot be read or written is thrown away and read again."""
        logger.warning("The copy of %s on this machine failed (%s); it is made anew.", self.topic, error)
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self.table.renew)
        except (sqlite3.Error, OSError) as refused:
            logger.warning("The copy of %s cannot be made (%s); trying again.", self.topic, refused)
            await asyncio.sleep(RETRY_SECONDS)
        self._positions = dict.fromkeys(self._positions, 0)

    async def _seek(self, consumer: Any) -> None:
        first = await consumer.beginning_offsets(self._places)
        for place in self._places:
            known = self._positions[place.partition]
            if known < first[place] and not TOPICS[self.topic].compacted:
                self.table.drop_below(place.partition, first[place])
            consumer.seek(place, max(known, first[place]))

    async def _step(self, consumer: Any) -> None:
        fetched = await consumer.getmany(*self._places, timeout_ms=POLL_MS, max_records=COPY_RECORDS)
        batches = {
            place.partition: [record_in(self.topic, message) for message in messages] for place, messages in fetched.items()
        }
        positions: dict[int, int] = {}
        for place in self._places:
            position = await consumer.position(place)
            if position > self._positions[place.partition]:
                positions[place.partition] = position
        if positions:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._keep, batches, positions)
        due = [one for one in self._waiting if self._positions[one[0]] >= one[1]]
        if due:
            self._waiting = [one for one in self._waiting if self._positions[one[0]] < one[1]]
            for _, _, future in due:
                if not future.done():
                    future.set_result(None)

    def _keep(self, batches: Mapping[int, Sequence[Record]], positions: Mapping[int, int]) -> None:
        self.table.write(batches, positions)
        for part, position in positions.items():
            before, self._positions[part] = self._positions[part], position
            self.feeds[part].publish(before, position, batches.get(part, ()))

    async def stop(self) -> None:
        """Stop following; waiting questions end with `LogClosed`."""
        self.closed = True
        self.task.cancel()
        await asyncio.wait([self.task])
        for _, _, future in self._waiting:
            if not future.done():
                future.set_exception(LogClosed("the log was closed"))
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)
        self.table.close()


class ScratchFolder:
    """A temporary folder for the copies. The next start removes what a killed process left: the lock on it is free then."""

    def __init__(self) -> None:
        sweep(Path(tempfile.gettempdir()))
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))
            self._lock: IO[str] | None = (self.path / _LOCK).open("w")
            _try_lock(self._lock)
            if (self.path / _LOCK).exists():  # else another start swept it before it was locked
                break

    def remove(self) -> None:
        """Remove the folder. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()
            shutil.rmtree(self.path, ignore_errors=True)


def sweep(folder: Path) -> int:
    """Remove what processes that are gone left in `folder`; return how many. What cannot be locked or removed stays."""
    swept = 0
    for left in folder.glob(f"{FOLDER_PREFIX}*"):
        if left.name.split("-")[2] == str(os.getpid()):
            continue  # a process gets its own locks twice, so it cannot ask about itself
        with contextlib.suppress(OSError), (left / _LOCK).open("r+") as lock:
            if _try_lock(lock):
                shutil.rmtree(left, ignore_errors=True)
                swept += 1
    return swept


def _try_lock(lock: IO[str]) -> bool:
    """Whether the lock is ours now; False also where there are no such locks (Windows), so that nothing is swept there."""
    try:
        import fcntl

        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
