"""A store without its index takes finished rollouts from the copy in the log, and from the log itself what the copy lacks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentlightning.core.log.interface import NewRecord
from agentlightning.core.log.open_log import open_log
from agentlightning.core.log.topics import SNAPSHOTS
from agentlightning.projections.archive import backfill, index, index_copy
from agentlightning.projections.archive.index_copy import IndexCopy, read_copy
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.rest.open_store import open_store

SETTINGS = StoreSettings(snapshot_every=1_000, archive_after=10)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "GROUP", 8)
    monkeypatch.setattr(index_copy, "PART_BYTES", 700)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


def opened(path: Path) -> Any:
    return open_store(f"sqlite:///{path}", settings=SETTINGS)


async def finish(store: Any, count: int) -> list[str]:
    made: list[str] = []
    for number in range(count):
        attempted = await store.start_rollout({"task": number})
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
        made.append(attempted.rollout_id)
    return made


async def everything(store: Any) -> list[Any]:
    await store.engine.indexed()
    return list(await store.query_rollouts())


def lose_index(path: Path) -> None:
    for one in path.parent.glob("*.index*"):
        one.unlink()


def folds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often the log is folded for the index."""
    made: list[int] = []
    fold_log: Callable[..., None] = backfill.Backfill._fold_log

    def counted(self: backfill.Backfill, to: int) -> None:
        made.append(to)
        fold_log(self, to)

    monkeypatch.setattr(backfill.Backfill, "_fold_log", counted)
    return made


async def test_a_lost_index_comes_back_from_the_copy_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as store:
        await finish(store, 40)
        before = await everything(store)
    lose_index(path)
    folded = folds(monkeypatch)
    with opened(path) as store:
        assert await everything(store) == before and len(before) == 40
        assert store.report()["from_snapshot"] > 0 and store.engine.backfill is not None and folded == []
    with opened(path) as store:  # and the index that was made fits
        assert store.engine.backfill is None and await everything(store) == before


async def test_what_changed_since_the_last_copy_is_in_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as store:
        ids = await finish(store, 40)
    with opened(path) as store:
        await store.update_rollout(ids[3], metadata={"changed": True})  # comes back, and is archived anew
        await finish(store, 40)
        before = await everything(store)
    lose_index(path)
    folded = folds(monkeypatch)
    with opened(path) as store:
        assert await everything(store) == before and before[3].metadata == {"changed": True}
        assert folded == []


@pytest.mark.parametrize("trouble", ["garbled", "missing", "of another rollout"])
async def test_what_the_copy_lacks_comes_from_the_log(
    path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as store:
        await finish(store, 40)
        before = await everything(store)
    with open_log(f"sqlite:///{path}") as log:
        parts = {one.key: one.value for one in log.read(SNAPSHOTS, 0, 0) if one.key.startswith("archive/")}
        values = sorted(parts)
        assert len(values) > 5
        value = {"garbled": b"\xff" * 50, "missing": b"", "of another rollout": parts[values[1]]}[trouble]
        replace(log, values[0], value)
    lose_index(path)
    folded = folds(monkeypatch)
    with opened(path) as store:
        assert await everything(store) == before and len(folded) == 1


async def test_a_log_of_an_older_release_gets_its_copy_with_the_next_snapshot(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(IndexCopy, "write", lambda self, created: None)
        with opened(path) as store:
            await finish(store, 40)
            before = await everything(store)
    with opened(path) as store:
        assert sum(map(len, read_copy(store.engine.log))) == 0
        store.engine.snapshot()
    lose_index(path)
    folded = folds(monkeypatch)
    with opened(path) as store:
        assert await everything(store) == before and folded == []


def replace(log: Any, key: str, value: bytes) -> None:
    ready = threading.Event()
    log.append(SNAPSHOTS, 0, [NewRecord(key, value, 0)], lambda _: ready.set())
    assert ready.wait(5)
