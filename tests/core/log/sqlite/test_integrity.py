"""A damaged file is refused with the position of the damage, and nothing is silently dropped."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from agentlightning.core.errors import InvalidInput, LogCorrupt
from agentlightning.core.log.interface import Log
from agentlightning.core.log.sqlite import SqliteLog, check_file, read_pool, schema
from agentlightning.core.log.topics import CONTROL, LIVENESS, SPANS

from ..log_contract import Following, append, new, until, values

COUNT = 2000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log with some records; the value of each is a text that occurs once in the file."""
    path = tmp_path / "log.db"
    with SqliteLog(path) as log:
        append(log, CONTROL, *(new(b"<control %06d>" % number * 8) for number in range(COUNT)))
        append(log, SPANS, *(new(b"<span %06d>" % number, f"ro-{number % 3}") for number in range(90)))
        append(log, LIVENESS, *(new(b"<beat %06d>" % number, f"w{number % 3}") for number in range(9)))
    return path


def change(path: Path, statement: str, *values: object) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(statement, values)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def flip(path: Path, text: bytes) -> None:
    """Change a letter of the file, behind SQLite's back (everywhere: pages keep remains of what was moved)."""
    content = path.read_bytes()
    assert text in content
    path.write_bytes(content.replace(text, text.replace(b"<", b"=")))


def all_of(log: Log, topic: str = CONTROL) -> None:
    offset, end = log.ends(topic, 0)
    while offset < end:
        offset = log.read(topic, 0, offset, 300, headers=False)[-1].offset + 1


@pytest.fixture(params=["writer", "looker"])
def opened(request: pytest.FixtureRequest) -> Callable[[Path], Log]:
    return SqliteLog if request.param == "writer" else SqliteLog.open_readonly


def test_one_altered_byte_is_found_at_its_offset(path: Path, opened: Callable[[Path], Log]) -> None:
    flip(path, b"<control 000777>")
    with opened(path) as log:
        assert len(log.read(CONTROL, 0, 0, 777)) == 777
        with pytest.raises(LogCorrupt) as told:
            all_of(log)
        assert (told.value.position, told.value.topic, told.value.partition) == (777, CONTROL, 0)
        assert "777" in str(told.value) and CONTROL in str(told.value)
        following = Following(log, 700)
        until(lambda: following.problems)
        assert following.problems[0].position == 777  # type: ignore[attr-defined]
        assert following.offsets() in ([], list(range(700, 777)))
    report = check_file(path)
    assert len(report.findings) == 1 and "777" in report.findings[0]
    assert report.records == {CONTROL: COUNT - 1, SPANS: 90, LIVENESS: 3, "blobs": 0, "snapshots": 0, "dead": 0}


@pytest.mark.parametrize(
    "column",
    ["key = key || '.'", "ts = ts + 1", "headers = x'91'", "value = 'text'", "crc = 1", "key = CAST(x'ff' AS TEXT)"],
)
def test_every_column_is_under_the_check_sum(path: Path, opened: Callable[[Path], Log], column: str) -> None:
    change(path, f"UPDATE control_0 SET {column} WHERE offset = 55")
    with opened(path) as log:
        with pytest.raises(LogCorrupt) as told:
            all_of(log)
        assert told.value.position == 55
    assert [finding for finding in check_file(path).findings if "55" in finding]


def test_a_record_that_moved_is_altered(path: Path) -> None:
    change(path, "DELETE FROM control_0 WHERE offset = 9")
    change(path, "UPDATE control_0 SET offset = 9 WHERE offset = 1999")
    with SqliteLog(path) as log, pytest.raises(LogCorrupt) as told:
        all_of(log)
    assert told.value.position == 9


def test_a_gap_is_found_at_its_first_offset(path: Path, opened: Callable[[Path], Log]) -> None:
    change(path, "DELETE FROM control_0 WHERE offset BETWEEN 1000 AND 1003")
    with opened(path) as log:
        with pytest.raises(LogCorrupt) as told:
            all_of(log)
        assert told.value.position == 1000 and "missing" in str(told.value)
        with pytest.raises(LogCorrupt):
            log.read(CONTROL, 0, 1002, 1)
        assert log.read(CONTROL, 0, 1004, 1)[0].offset == 1004
    report = check_file(path)
    assert report.findings == ["control: the records at offsets 1000 to 1003 are missing"]
    assert report.records[CONTROL] == COUNT - 4


def test_records_that_vanish_from_the_end_are_missing(path: Path) -> None:
    with SqliteLog(path) as log:
        change(path, "DELETE FROM control_0 WHERE offset > 1990")
        with pytest.raises(LogCorrupt) as told:
            all_of(log)
        assert told.value.position == 1991


def test_a_missing_start_is_a_gap_too(path: Path) -> None:
    change(path, "DELETE FROM control_0 WHERE offset < 3")
    with SqliteLog(path) as log, pytest.raises(LogCorrupt) as told:
        log.read(CONTROL, 0, 0)
    assert told.value.position == 0


def test_an_alteration_before_a_gap_is_the_first_that_is_told(path: Path) -> None:
    flip(path, b"<control 000020>")
    change(path, "DELETE FROM control_0 WHERE offset = 30")
    with SqliteLog(path) as log, pytest.raises(LogCorrupt) as told:
        log.read(CONTROL, 0, 0)
    assert told.value.position == 20
    assert len(check_file(path).findings) == 2


def test_damage_is_found_by_key_and_in_compacted_topics(path: Path) -> None:
    flip(path, b"<span 000031>")
    flip(path, b"<beat 000007>")
    with SqliteLog(path) as log:
        with pytest.raises(LogCorrupt) as told:
            log.read_key(SPANS, "ro-1")
        assert told.value.position == 31
        assert len(log.read_key(SPANS, "ro-2")) == 30
        with pytest.raises(LogCorrupt) as told:
            log.read(LIVENESS, 0, 0)
        assert told.value.position == 7
    report = check_file(path)
    assert len(report.findings) == 2 and report.records[LIVENESS] == 2 and report.records[SPANS] == 89


def test_a_truncated_file_is_refused(path: Path, opened: Callable[[Path], Log]) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 // 4096 * 4096])
    with pytest.raises(LogCorrupt) as told:
        with opened(path) as log:
            for topic in (CONTROL, SPANS, LIVENESS):
                all_of(log, topic)
    assert told.value.position is not None
    assert not check_file(path).sound


def test_a_torn_page_is_refused_with_the_first_offset_that_cannot_be_read(path: Path) -> None:
    content = bytearray(path.read_bytes())
    page = content.index(b"<control 001000>") // 4096
    content[page * 4096 : page * 4096 + 4096] = bytes(4096)
    path.write_bytes(content)
    with SqliteLog(path) as log:
        with pytest.raises(LogCorrupt) as told:
            all_of(log)
        assert told.value.position is not None and 900 < told.value.position <= 1000
        assert told.value.topic == CONTROL
        position = told.value.position
        assert len(log.read(CONTROL, 0, 0, position)) == position
    assert not check_file(path).sound


@pytest.mark.parametrize("content", [b"\0" * 100 + b"x" * 9000, b"SQLite format 3\0" + b"\xff" * 9000, b"{}"])
def test_a_garbage_header_is_refused_and_left_alone(path: Path, content: bytes, opened: Callable[[Path], Log]) -> None:
    path.write_bytes(content)
    with pytest.raises(LogCorrupt) as told:
        opened(path).close()
    assert told.value.position == 0 and str(path) in str(told.value)
    assert path.read_bytes() == content
    assert not check_file(path).sound


def test_a_database_of_somebody_else_is_refused_and_left_alone(tmp_path: Path, opened: Callable[[Path], Log]) -> None:
    path = tmp_path / "other.db"
    change(path, "CREATE TABLE theirs (a)")
    before = path.read_bytes()
    with pytest.raises(LogCorrupt, match="not a log"):
        opened(path).close()
    assert path.read_bytes() == before


def test_a_newer_format_is_refused_and_left_alone(path: Path, opened: Callable[[Path], Log]) -> None:
    change(path, "UPDATE meta SET value = '3' WHERE key = 'format'")
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match="format 3.*upgrade"):
        opened(path).close()
    assert path.read_bytes() == before
    assert not check_file(path).sound


def test_a_sound_file_has_no_findings_also_while_it_is_written(path: Path) -> None:
    with SqliteLog(path) as log:
        append(log, CONTROL, new(1))
        report = check_file(path)
        assert report.sound and report.findings == [] and report.log_id == log.log_id
        assert report.records[CONTROL] == COUNT + 1
        assert values(log.read(CONTROL, 0, COUNT)) == [b"1"]
    assert not check_file(path.with_name("nothing.db")).sound


def test_findings_are_bounded(path: Path) -> None:
    change(path, "UPDATE control_0 SET crc = 1")
    report = check_file(path)
    assert 50 < len(report.findings) <= 101 and report.records[CONTROL] == 0


_ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT"
STRANGE = {
    "a view as meta": (
        f"ALTER TABLE meta RENAME TO m; CREATE VIEW meta AS {_ENDLESS} 'format' AS key, '1' AS value FROM c",
        "view 'meta' is not what a log has",
    ),
    "a view as a topic": (
        f"ALTER TABLE spans_0 RENAME TO s; CREATE VIEW spans_0 AS {_ENDLESS} x AS offset, x'' AS value FROM c",
        "is not what a log has",
    ),
    "another table": ("ALTER TABLE control_0 ADD COLUMN more TEXT", "table 'control_0' is not what a log has"),
    "an index that computes": ("CREATE INDEX i ON control_0 (hex(zeroblob(9)))", "index 'i' is not what a log has"),
    "a number of a thousand digits": (
        "UPDATE meta SET value = printf('%.1000d', 1) WHERE key = 'format'",
        "incomplete",
    ),
    "an id with an escape": ("UPDATE meta SET value = char(27) || '[2J' WHERE key = 'log_id'", "incomplete"),
    "the largest offset": (
        "INSERT INTO liveness_0 VALUES (9223372036854775807, 1, 'w', x'', x'', 1)",
        "so many records",
    ),
    "a negative offset": ("INSERT INTO control_0 VALUES (-5, 1, 'w', x'', x'', 1)", "so many records"),
    "a text as time": ("UPDATE control_0 SET ts = 'abc' WHERE offset = 7", "offset 7 of control was altered"),
    "a text as value": ("UPDATE control_0 SET value = 'abc' WHERE offset = 7", "offset 7 of control was altered"),
    "no text as key": ("UPDATE control_0 SET key = CAST(x'ff00fe' AS TEXT) WHERE offset = 7", "control"),
    "a text as check sum": ("UPDATE control_0 SET crc = 'abc' WHERE offset = 7", "offset 7 of control was altered"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_file_of_somebody_else_is_refused_with_a_sentence(
    path: Path, opened: Callable[[Path], Log], case: str
) -> None:
    for statement in STRANGE[case][0].split("; "):
        change(path, statement)
    before = path.read_bytes()
    with pytest.raises(LogCorrupt, match=STRANGE[case][1]) as refused:
        with opened(path) as log:
            all_of(log)
            all_of(log, LIVENESS)
    assert path.read_bytes() == before
    report = check_file(path)
    assert not report.sound and "\n" not in refused.value.message


@pytest.mark.parametrize("case", ["another type", "a huge cell"])
def test_a_strange_value_with_a_check_sum_that_fits_is_refused(
    path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp: object = "abc" if case == "another type" else 1
    value = b"x" * 20_000  # larger than a page
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        check = schema.checksum(7, stamp, "default", b"", value)  # type: ignore[arg-type]
        changes = (stamp, b"", value, check)
        db.execute(
            "UPDATE control_0 SET ts = ?, headers = ?, value = ?, crc = ?, key = 'default' WHERE offset = 7", changes
        )
    if case == "a huge cell":
        with SqliteLog.open_readonly(path) as log:
            all_of(log)
        monkeypatch.setattr(read_pool, "_COLUMNS", read_pool._COLUMNS.replace(str(schema.MOST_VALUE), "9999"))
        monkeypatch.setattr(read_pool, "MOST_VALUE", 9999)
    with SqliteLog.open_readonly(path) as log:
        with pytest.raises(LogCorrupt, match="offset 7 of control was altered"):
            all_of(log)


@pytest.mark.parametrize("what", ["a trigger", "a view and nothing else", "tables of another program"])
def test_a_file_that_would_be_written_to_is_refused_before(tmp_path: Path, path: Path, what: str) -> None:
    if what == "a trigger":
        change(path, "CREATE TRIGGER t AFTER INSERT ON control_0 BEGIN DELETE FROM spans_0; END")
    else:
        path = tmp_path / "other.db"
        change(
            path, "CREATE VIEW v AS SELECT 1" if what[2] == "v" else "CREATE TABLE moz_places (id INTEGER PRIMARY KEY)"
        )
    before = path.read_bytes()
    with pytest.raises(LogCorrupt, match="has triggers .'t'." if what == "a trigger" else "is not a log"):
        SqliteLog(path)
    assert path.read_bytes() == before and not check_file(path).sound
    if what == "a trigger":
        with SqliteLog.open_readonly(path) as log:
            all_of(log)  # nothing runs while it is only read


def test_tables_of_another_program_beside_ours_are_left_alone(path: Path) -> None:
    change(path, "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)")
    with SqliteLog(path) as log:
        append(log, CONTROL, new(b"more"))
    assert check_file(path).sound
