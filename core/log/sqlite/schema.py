"""The file: its tables, its check sums, and how its errors are reported.

A file may come from anybody. What carries the name of one of our tables or indexes has to be exactly that, or the file is
no log: a view or a trigger in its place would run SQL of somebody else. Values are checked for their types as they are read.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import msgspec

from ...errors import InvalidInput, LogCorrupt, LogError, LogFull, StorageError
from ..append_checks import decode_headers
from ..interface import Record
from ..topics import CONTROL, DEAD, SNAPSHOTS, SPANS, STORED, TOPICS

FORMAT_VERSION = 2
"""1 was never released: values of its control topic were msgpack."""
_GROUP_OFFSETS = "group_offsets"
MOST_OFFSET = 1 << 61
"""No log comes so far; SQLite's numbers end at 2**63."""
MOST_VALUE = 300_000_000
"""Bytes of a cell: more than any release writes. A larger one is not read into memory."""
_DAMAGED = ("malformed", "not a database", "Could not decode", "too big")
"""SQLite's words for a torn page, a foreign header, a text that is none, and a cell beyond `MOST_VALUE`.

The module sqlite3 of Python 3.10 has no codes.
"""


def table(topic: str, partition: int = 0) -> str:
    """The table of a partition; every topic of a file has one."""
    return f"{topic}_{partition}"


def prepare(db: sqlite3.Connection, path: Path) -> dict[str, str]:
    """Make the tables that are missing (all of a new file, a later topic's of an older one) and return the meta table.

    In one transaction, so a process that dies here leaves an empty file, which is a new one. A file that is no log or
    of a newer format is refused before anything is written to it.
    """
    there = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_master")}
    if there:
        read_meta(db, path)
        triggers = triggers_of(db)
        if triggers:
            raise LogCorrupt(
                f"{path} has triggers ({', '.join(triggers)}), which no log has: they would change what is written. Where it "
                "is yours, remove them (DROP TRIGGER) or copy the log with `agl log copy`",
                position=0,
            )
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StorageError(f"{path} cannot have a write-ahead log (journal mode {mode}); is it on a network drive?")
    if not there.issuperset({"meta", _GROUP_OFFSETS, *map(table, STORED)}):
        _create(db)
    return read_meta(db, path)


def _objects() -> dict[str, str]:
    """Name -> SQL of every table and index, as SQLite keeps it."""
    made = {
        "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
        _GROUP_OFFSETS: f"CREATE TABLE {_GROUP_OFFSETS} (consumer_group TEXT, topic TEXT, partition INTEGER, "
        "offset INTEGER NOT NULL, PRIMARY KEY (consumer_group, topic, partition))",
    }
    for topic in STORED:
        name = table(topic)
        made[name] = (
            f"CREATE TABLE {name} (offset INTEGER PRIMARY KEY, ts INTEGER NOT NULL, key TEXT NOT NULL, "
            "headers BLOB NOT NULL, value BLOB NOT NULL, crc INTEGER NOT NULL)"
        )
        if TOPICS[topic].by_key:
            made[f"{name}_by_key"] = f"CREATE INDEX {name}_by_key ON {name} (key, offset)"
        made[topic] = _view(topic)
    return made


_COLUMNS = {
    CONTROL: {
        "type": "'$.event.t'",
        "rollout": "'$.event.rollout_id', '$.event.rollout.rollout_id', '$.event.rollouts[0].rollout_id'",
    },
    SPANS: {"type": "'$.t'", "rollout": "'$.rollout_id'", "attempt": "'$.attempt_id'", "name": "'$.body.name'"},
    DEAD: {"type": "'$.kind'", "rollout": "'$.rollout_id'", "reason": "'$.reason'"},
}
"""Columns of a topic's view beside position, time, key and value: JSON paths, the first that is there counts."""


def _view(topic: str) -> str:
    """A view of the topic for people and other programs (docs/how-to/look-with-sqlite3-and-kcat.md); no release reads it."""
    text = "CAST(value AS TEXT)"
    columns = ["offset AS position", "strftime('%Y-%m-%d %H:%M:%f', ts / 1e6, 'unixepoch') AS time", "key"]
    for name, paths in _COLUMNS.get(topic, {}).items():
        found = [f"json_extract({text}, {path})" for path in paths.split(", ")]
        first = found[0] if len(found) == 1 else f"coalesce({', '.join(found)})"
        columns.append(f"CASE WHEN json_valid({text}) THEN {first} END AS {name}")
    columns.append("length(value) AS bytes" if topic == SNAPSHOTS else f"{text} AS value")
    return f"CREATE VIEW {topic} AS SELECT {', '.join(columns)} FROM {table(topic)}"


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    there = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_master")}
    for name, statement in _objects().items():
        if name not in there:
            db.execute(statement)
    meta = [("format", str(FORMAT_VERSION)), ("log_id", uuid.uuid4().hex[:16]), ("created", str(int(time.time())))]
    db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", meta)
    db.execute("COMMIT")


def read_meta(db: sqlite3.Connection, path: Path) -> dict[str, str]:
    """The file's meta table. Raises `LogCorrupt` where it is no log of ours, `InvalidInput` for a newer format."""
    try:
        _check_objects(db, path)
        query = "SELECT key, substr(value, 1, 100) FROM meta WHERE key IN ('format', 'log_id', 'created')"
        meta = {str(key): str(value) for key, value in db.execute(query)}
    except sqlite3.DatabaseError as error:
        raise opening_failed(error, path) from error
    if not re.fullmatch("[0-9]{1,9}", meta.get("format", "")) or not re.fullmatch(
        "[0-9A-Za-z_.-]{1,64}", meta.get("log_id", "")
    ):
        raise LogCorrupt(f"{path} is not a log: its meta table is incomplete", position=0)
    if int(meta["format"]) != FORMAT_VERSION:
        remedy = "upgrade the package" if int(meta["format"]) > FORMAT_VERSION else "begin a new log in another file"
        raise InvalidInput(f"{path} has format {meta['format']}, this release reads {FORMAT_VERSION}; {remedy}")
    return meta


def _check_objects(db: sqlite3.Connection, path: Path) -> None:
    """Raise `LogCorrupt` unless whatever has the name of a table of ours, or belongs to one, is what we make."""
    ours = _objects()
    query = (
        "SELECT type, substr(name, 1, 200), tbl_name, substr(sql, 1, 2000) FROM sqlite_master WHERE type != 'trigger'"
    )
    found = {str(name): (str(kind), str(of), sql) for kind, name, of, sql in db.execute(query)}
    if "meta" not in found:
        raise LogCorrupt(f"{path} is not a log: it has no meta table", position=0)
    for name, (kind, of, sql) in found.items():
        if name.startswith("sqlite_") or (name not in ours and (kind != "index" or of not in ours)):
            continue  # SQLite's own, and tables of other programs, which nobody here reads
        if sql != ours.get(name):
            raise LogCorrupt(f"{path} is not a log: its {kind} {name!r} is not what a log has", position=0)


def triggers_of(db: sqlite3.Connection) -> list[str]:
    """The names of the file's triggers, some of them; a log has none."""
    query = "SELECT substr(name, 1, 60) FROM sqlite_master WHERE type = 'trigger' LIMIT 5"
    return [repr(str(row[0])) for row in db.execute(query)]


def checksum(offset: int, timestamp_us: int, key: str, headers: bytes, value: bytes) -> int:
    """CRC-32 over everything that a row says."""
    return crc32(value, crc32(headers, crc32(f"{offset}|{timestamp_us}|{key}|".encode())))


Row = tuple[int, int, str, bytes, bytes, int]


def records(topic: str, rows: Sequence[Row], headers: bool, expected: int | None) -> list[Record]:
    """Records of rows in order. Raises `LogCorrupt` at the first that is altered or, with `expected`, missing."""
    missing = None if expected is None or not rows else _first_gap(rows, expected)
    if missing is not None:
        rows = rows[: missing - (expected or 0)]
    found: list[Record] = []
    add = found.append
    offset = 0
    try:
        # `checksum`, written out: a call for each row costs a fifth of the time that a million rows take.
        for offset, stamp, key, head, value, crc in rows:
            if crc32(value, crc32(head, crc32(f"{offset}|{stamp}|{key}|".encode()))) != crc:
                raise altered(topic, offset, "its check sum does not fit")
            if type(stamp) is not int or type(key) is not str:
                raise altered(topic, offset, "its time or key is of another type")
            add(Record(topic, 0, offset, key, value, stamp, decode_headers(head) if headers else ()))
    except (TypeError, msgspec.MsgspecError) as error:
        raise altered(topic, offset, str(error)) from error
    if missing is not None:
        raise gone(topic, missing)
    return found


def _first_gap(rows: Sequence[Row], expected: int) -> int | None:
    if rows[0][0] == expected and rows[-1][0] - expected == len(rows) - 1:
        return None
    return next(index for index, row in enumerate(rows, expected) if row[0] != index)


def altered(topic: str, offset: int, why: str) -> LogCorrupt:
    """The error for a record that is not what was written."""
    return LogCorrupt(
        f"the record at offset {offset} of {topic} was altered: {why}", position=offset, topic=topic, partition=0
    )


def gone(topic: str, offset: int) -> LogCorrupt:
    """The error for a record that should be there and is not."""
    return LogCorrupt(f"the record at offset {offset} of {topic} is missing", position=offset, topic=topic, partition=0)


def check_kind(path: Path) -> None:
    """Raise `InvalidInput` for a folder, and for a file that this user may not read. One that does not exist passes.

    The file is not opened: closing it would drop the locks that SQLite has on it in this process.
    """
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder; a log is a file in it, such as {path / 'log.db'}")
    if path.exists() and not os.access(path, os.R_OK):
        raise InvalidInput(f"{path} may not be read by this user; its owner can give the right (chmod), or copy the log")


def opening_failed(error: sqlite3.Error, path: Path) -> LogError:
    """The error of our tree for one that SQLite had when it opened the file; a text file is named as one."""
    if "not a database" in str(error):
        try:
            with path.open("rb") as file:
                text = b"\0" not in file.read(_HEAD_BYTES)
        except OSError:
            text = False
        if text:
            return LogCorrupt(f"{path} is a text file and no event log; name the log, such as .agl/log.db", position=0)
    return storage_error(error, f"opening {path}")


_HEAD_BYTES = 4096
"""Of a log the first page, which has zero bytes; a text has none."""


def storage_error(error: sqlite3.Error, doing: str) -> LogError:
    """The error of our tree for one of SQLite's."""
    text = str(error)
    if "disk is full" in text:
        return LogFull(f"no room left while {doing} ({text}); nothing of it was written")
    if any(word in text for word in _DAMAGED):
        return LogCorrupt(f"the file is damaged ({text}), found while {doing}; `agl log check` tells more", position=0)
    return StorageError(f"SQLite failed while {doing}: {text}")
