"""How rollouts stand is told from the newest snapshot on, and is what the whole fold says, whatever lies beside the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from agentlightning.core.fold.apply import apply
from agentlightning.core.fold.state import Rollout, State
from agentlightning.core.log.interface import Log, Record
from agentlightning.core.log.open_log import open_log
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.history.rollout_history import has_rollout, history_of, rollouts_at_end
from agentlightning.projections.replica.fold_cursor import control_records
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.rest.open_store import open_store

from ..store.test_rollout_query import live

SETTINGS = StoreSettings(snapshot_every=40, archive_after=10)


@pytest.fixture
async def kept(tmp_path: Path) -> tuple[Path, list[str]]:
    """A log with snapshots and an index beside it, and the ids of its rollouts."""
    made: list[str] = []
    store: Any = open_store(f"sqlite:///{tmp_path / 'log.db'}", settings=SETTINGS)
    await live(store, Random(11), 400, made)
    store.engine.snapshot()
    store.close()
    return tmp_path / "log.db", made


def looked_at(path: Path) -> Log:
    return open_log(f"sqlite:///{path}", readonly=True)


def reads_of(log: Log, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets of the control records that are read from now on."""
    offsets: list[int] = []
    real = log.read

    def read(topic: str, partition: int, offset: int, *rest: int, **more: bool) -> Sequence[Record]:
        records = real(topic, partition, offset, *rest, **more)
        if topic == CONTROL:
            offsets.extend(record.offset for record in records)
        return records

    monkeypatch.setattr(log, "read", read)
    return offsets


def folded(log: Log) -> tuple[dict[str, Rollout], int]:
    """Every rollout as the fold of all records left it, archived or not, and how many records these are."""
    state, left, count = State(), dict[str, Rollout](), 0
    for record in control_records(log):
        count += 1
        left.update((gone.rollout_id, gone) for gone, _ in apply(state, record.value).archived)
    return {**left, **state.rollouts}, count


async def test_who_looks_from_the_snapshot_on_sees_what_the_fold_says(
    kept: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = kept
    with looked_at(path) as log:
        whole, count = folded(log)
        offsets = reads_of(log, monkeypatch)
        found = rollouts_at_end(log, [*made, "ro-nobody"])
        assert found == {one: whole[one] for one in made} and list(found) == sorted(made, key=lambda one: whole[one].number)
        assert len(made) > 100 and count > 400 and len(offsets) < 60, (len(made), count, len(offsets))
        assert rollouts_at_end(log, ()) == {}


async def test_a_whole_id_is_found_without_a_search_of_the_log(
    kept: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = kept
    with looked_at(path) as log:
        _, count = folded(log)
        offsets = reads_of(log, monkeypatch)
        assert all(has_rollout(log, one) for one in (made[0], made[-1]))
        assert not any(has_rollout(log, one) for one in ("ro-000000000000", made[0][:10], "at-00000000"))
        assert count > 400 and len(offsets) < 60, (count, len(offsets))


@pytest.mark.parametrize("what", ["gone", "another log's", "changed", "torn"])
async def test_an_index_that_cannot_be_believed_costs_the_fold_and_nothing_else(
    kept: tuple[Path, list[str]], what: str
) -> None:
    path, made = kept
    index = Path(f"{path}.index")
    assert index.is_file()
    if what in ("another log's", "changed"):
        db = sqlite3.connect(index)
        changed = "UPDATE bodies SET body = zeroblob(40)"
        db.execute(changed if what == "changed" else "UPDATE meta SET value = 'x' WHERE key = 'log_id'")
        db.commit()
        db.close()
    elif what == "torn":
        index.write_bytes(index.read_bytes()[:5_000])
    else:
        index.unlink()
    with looked_at(path) as log:
        whole, _ = folded(log)
        assert rollouts_at_end(log, made) == {one: whole[one] for one in made}


async def test_the_history_of_a_young_rollout_is_folded_from_the_snapshot_and_of_an_old_one_from_the_start(
    kept: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = kept
    store: Any = open_store(f"sqlite:///{path}", settings=StoreSettings(snapshot_every=10_000, archive_after=10))
    young = await store.enqueue_rollout("young")
    await store.update_rollout(young.rollout_id, status="cancelled")
    store.engine.log.close()  # without the snapshot that a store leaves when it ends
    store.close()
    with looked_at(path) as log:
        folds = 0

        def counted(state: State, value: bytes) -> object:
            nonlocal folds
            folds += 1
            return apply(state, value)

        monkeypatch.setattr("agentlightning.projections.replica.fold_cursor.apply", counted)
        steps = history_of(log, young.rollout_id).steps
        assert [fact.type for step in steps for fact in step.facts][0] == "rollout.enqueued" and 2 <= folds < 60
        few, folds = folds, 0
        assert history_of(log, made[0]).rollout.rollout_id == made[0] and folds > few + 300
