"""The file: its tables, its check sums, and how its errors are told."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from zlib import crc32

import msgspec

from ..errors import InvalidInput, LogCorrupt, LogError, LogFull, StorageError
from ..log import Record
from ..log_records import decode_headers
from ..topics import STORED, TOPICS

FORMAT_VERSION = 1
_FULL = ("full", "disk I/O error: no space")


def table(topic: str, partition: int = 0) -> str:
    """The table of a partition; every topic of a file has one."""
    return f"{topic}_{partition}"


def create(db: sqlite3.Connection) -> None:
    """Make the tables of a new file and give the log its id."""
    db.execute("BEGIN IMMEDIATE")
    db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    for topic in STORED:
        name = table(topic)
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {name} (offset INTEGER PRIMARY KEY, ts INTEGER NOT NULL, key TEXT NOT NULL, "
            "headers BLOB NOT NULL, value BLOB NOT NULL, crc INTEGER NOT NULL)"
        )
        if TOPICS[topic].by_key:
            db.execute(f"CREATE INDEX IF NOT EXISTS {name}_by_key ON {name} (key, offset)")
    db.execute(
        "CREATE TABLE IF NOT EXISTS group_offsets (consumer_group TEXT, topic TEXT, partition INTEGER, "
        "offset INTEGER NOT NULL, PRIMARY KEY (consumer_group, topic, partition))"
    )
    meta = [("format", str(FORMAT_VERSION)), ("log_id", uuid.uuid4().hex[:16]), ("created", str(int(time.time())))]
    db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", meta)
    db.execute("COMMIT")


def read_meta(db: sqlite3.Connection, path: Path) -> dict[str, str]:
    """The file's meta table. Raises `LogCorrupt` where it has none, `InvalidInput` for a newer format."""
    try:
        meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    except sqlite3.DatabaseError as error:
        raise LogCorrupt(f"{path} is not a log: {error}", position=0) from None
    if not meta.get("format", "").isdigit() or "log_id" not in meta:
        raise LogCorrupt(f"{path} is not a log: its meta table is incomplete", position=0)
    if int(meta["format"]) > FORMAT_VERSION:
        raise InvalidInput(f"{path} has format {meta['format']}, this release reads {FORMAT_VERSION}; upgrade the package")
    return meta


def checksum(offset: int, timestamp_us: int, key: str, headers: bytes, value: bytes) -> int:
    """CRC-32 over everything that a row says."""
    return crc32(value, crc32(headers, crc32(f"{offset}|{timestamp_us}|{key}|".encode())))


Row = tuple[int, int, str, bytes, bytes, int]


def records(topic: str, rows: Iterable[Row], headers: bool, expected: int | None) -> Iterator[Record]:
    """Records of rows in order. Raises `LogCorrupt` at the first that is altered or, with `expected`, missing."""
    for offset, timestamp_us, key, head, value, crc in rows:
        if expected is not None:
            if offset != expected:
                raise LogCorrupt(
                    f"the record at offset {expected} of {topic} is missing", position=expected, topic=topic, partition=0
                )
            expected += 1
        if checksum(offset, timestamp_us, key, head, value) != crc:
            raise LogCorrupt(
                f"the record at offset {offset} of {topic} was altered: its check sum does not fit",
                position=offset,
                topic=topic,
                partition=0,
            )
        try:
            texts = decode_headers(head) if headers else ()
        except msgspec.MsgspecError as error:
            raise LogCorrupt(f"the headers at offset {offset} of {topic}: {error}", position=offset, topic=topic) from None
        yield Record(topic, 0, offset, key, value, timestamp_us, texts)


def told(error: sqlite3.Error, doing: str) -> LogError:
    """The error of our tree for one of SQLite's."""
    code = getattr(error, "sqlite_errorname", "")
    if code == "SQLITE_FULL" or "full" in str(error):
        return LogFull(f"no room left while {doing}: {error}; nothing of it was written")
    if code in ("SQLITE_CORRUPT", "SQLITE_NOTADB") or "malformed" in str(error) or "not a database" in str(error):
        return LogCorrupt(f"the file is damaged ({error}), found while {doing}; `agl log check` tells more")
    return StorageError(f"SQLite failed while {doing}: {error}")
