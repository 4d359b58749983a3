"""A part of a copy never passes for a sound log: it has no name yet, no store opens it, and the check says what is missing."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentlightning.core.errors import InvalidInput, LogCorrupt, StorageError
from agentlightning.core.log import log_copy as copying
from agentlightning.core.log.interface import Done, NewRecord
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.log_copy import copy_log, copy_mark, copy_to_file
from agentlightning.core.log.open_log import open_log
from agentlightning.projections.history.log_check import broken_references, check_file
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store

from ...projections.store.tools import span
from .log_contract import SpreadLog


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A log with payloads in blobs (of a task, of resources, of a span) and spans that were acknowledged before an end."""
    path = tmp_path / "log.db"
    with open_store(f"sqlite:///{path}") as store:  # type: ignore[attr-defined]
        await store.add_resources({"prompt": "p" * 1_000_000})
        await store.enqueue_rollout({"text": "x" * 1_000_000})
        attempted = await store.start_rollout("task")
        await store.add_span(span(attempted, attributes={"big": "y" * 1_000_000}))
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
    return path


class Ending(MemoryLog):
    """Refuses every append after the first `left`, as a broker that goes away."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        self.left -= 1
        if self.left < 0:
            done(StorageError("the target went away"))
        else:
            super().append(topic, partition, records, done)


def test_a_copy_is_whole_and_opens(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with open_log(f"sqlite:///{path}", readonly=True) as source:
        assert broken_references(source) == []
        copy_to_file(source, copy)
        with pytest.raises(InvalidInput, match="exists"):
            copy_to_file(source, copy)
    assert sorted(one.name for one in tmp_path.glob("copy*")) == ["copy.db"]
    assert os.stat(copy).st_nlink == 1
    report = check_file(copy)
    assert report.sound and report.fingerprint == check_file(path).fingerprint
    open_store(f"sqlite:///{copy}").close()  # type: ignore[attr-defined]


def test_a_copy_that_ends_early_leaves_no_file_of_that_name(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.db"
    real = copying._append
    left = 3

    def append(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise StorageError("no room left")
        real(*arguments)

    monkeypatch.setattr(copying, "_append", append)
    with open_log(f"sqlite:///{path}", readonly=True) as source:
        with pytest.raises(StorageError, match="no room"):
            copy_to_file(source, copy)
        assert list(tmp_path.glob("copy*")) == []
        # A copy that was killed leaves its files, which the next one replaces.
        left = 3
        with monkeypatch.context() as killed:
            killed.setattr(copying, "_remove", lambda part: None)
            with pytest.raises(StorageError, match="no room"):
                copy_to_file(source, copy)
        part = tmp_path / "copy.db.incomplete"
        assert part.exists() and not copy.exists()
        assert not check_file(part).sound
        with pytest.raises(LogCorrupt, match="ended before everything was copied"):
            open_store(f"sqlite:///{part}")
        left = -1
        copy_to_file(source, copy)
    assert sorted(one.name for one in tmp_path.glob("copy*")) == ["copy.db"] and check_file(copy).sound


def test_a_target_without_a_name_is_marked_until_it_is_complete(path: Path) -> None:
    with open_log(f"sqlite:///{path}", readonly=True) as source:
        for left in range(1, 50):
            with Ending(left) as target:
                try:
                    copy_log(source, target)
                except StorageError:
                    target.left = 10**6  # pyright: ignore[reportAttributeAccessIssue]
                    mark = copy_mark(target)
                    assert mark is not None and mark.unfinished, left
                    assert any("ended before everything" in one for one in broken_references(target))
                    with pytest.raises(LogCorrupt, match="Copy again"):
                        EventLogStore(target)
                    with pytest.raises(InvalidInput, match="copied into an empty one"):
                        copy_log(source, target)
                    with pytest.raises(LogCorrupt, match="Copy again"), MemoryLog() as other:
                        copy_log(target, other)
                    continue
                target.left = 10**6  # pyright: ignore[reportAttributeAccessIssue]
                assert left > 4 and broken_references(target) == []
                EventLogStore(target).close()
                return
    pytest.fail("the copy never ended")


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("DELETE FROM blobs_0 WHERE offset = 0", "is missing, to which an event about 'rs-"),
        ("DELETE FROM blobs_0 WHERE offset = 1", "is missing, to which an event about "),
        ("DELETE FROM blobs_0 WHERE offset = 2", "is missing, to which a span of rollout ro-"),
        ("DELETE FROM spans_0", "spans that were acknowledged are missing"),
    ],
)
def test_the_check_misses_what_events_refer_to(path: Path, statement: str, finding: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()
    report = check_file(path)
    assert not report.sound
    assert any(finding in one for one in report.findings), report.findings


def test_a_copy_into_another_number_of_partitions_is_sound(path: Path) -> None:
    with open_log(f"sqlite:///{path}", readonly=True) as source, SpreadLog(4) as spread, MemoryLog() as back:
        copy_log(source, spread)
        assert broken_references(spread) == []
        copy_log(spread, back)
        mark = copy_mark(back)
        assert mark is not None and mark.span_partitions == 1 and broken_references(back) == []
