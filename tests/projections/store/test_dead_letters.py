"""Dead letters of a store: listed once whoever wrote them, settled by a retry, open again when that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.events.run_events import RUN_ID
from agentlightning.core.log.dead_letter import DeadLetter, rollout_letter_id
from agentlightning.core.log.interface import NewRecord
from agentlightning.core.log.open_log import open_log
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.dead_letters import dead_letters, entries_from, requeue, requeue_run, write_letter
from agentlightning.rest.open_store import open_store


@pytest.fixture(params=["memory", "sqlite", "http"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    opened: Any = open_store("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/log.db")
    if request.param != "http":
        yield opened
        opened.close()
        return
    server = agl.LightningStoreServer(opened, port=0)
    await server.start()
    client = agl.LightningStoreClient(server.endpoint)
    yield client
    await client.close()
    await server.stop()
    opened.close()


def letter(rollout_id: str = "ro-1", **more: Any) -> DeadLetter:
    made: dict[str, Any] = {
        "id": rollout_letter_id(rollout_id, 1),
        "kind": "rollout",
        "source": rollout_id,
        "rollout_id": rollout_id,
        "reason": "3 of 3 attempts failed",
        "time": 100.0,
        "tries": 3,
    }
    return DeadLetter(**{**made, **more})


async def test_a_letter_told_twice_is_one_and_given_up_again_is_open_again(store: Any) -> None:
    assert await store.query_dead_letters() == []
    for told in (letter(), letter(), letter(settled="requeued", time=50.0)):
        await store.add_dead_letter(told)
    (entry,) = entries_from(await store.query_dead_letters())
    assert (entry.times, entry.first_time, entry.letter.settled) == (1, 100.0, "requeued")
    await store.add_dead_letter(letter(time=200.0, reason="again"))
    (entry,) = entries_from(await store.query_dead_letters())
    assert (entry.times, entry.first_time, entry.last_time, entry.letter.settled) == (2, 100.0, 200.0, "")
    assert entry.letter.reason == "again"


async def test_what_is_no_letter_is_refused(store: Any) -> None:
    with pytest.raises(agl.InvalidInput, match="no dead letter"):
        await store.add_dead_letter({"id": "x"})


async def test_a_rollout_that_was_given_up_is_queued_in_a_new_generation(store: Any) -> None:
    begun = await store.start_rollout("input", worker_id="w")
    told = letter(begun.rollout_id)
    with pytest.raises(agl.InvalidInput, match="somebody has started it again"):
        await requeue(store, told)
    await store.update_attempt(begun.rollout_id, begun.attempt.attempt_id, status="failed")
    await requeue(store, told)
    assert (await store.get_rollout_by_id(begun.rollout_id)).status == "queuing"
    assert (await store.dequeue_rollout("w")).rollout_id == begun.rollout_id
    (entry,) = entries_from(await store.query_dead_letters())
    assert entry.letter.settled == "requeued"
    with pytest.raises(agl.NotFound):
        await requeue(store, letter("ro-nobody"))


async def test_a_record_of_the_topic_that_is_no_letter_is_shown_as_one() -> None:
    store: Any = open_store("memory://")
    answered: list[Any] = []
    store.engine.log.append("dead", 0, [NewRecord("k", b"\xff", 5_000_000)], answered.append)
    await write_letter(store.engine.log, letter())
    entries = entries_from(await store.query_dead_letters())
    assert [(entry.letter.kind, entry.letter.id) for entry in entries] == [
        ("record", "record/dead/0/0"),
        ("rollout", "rollout/ro-1/1"),
    ]
    assert entries[0].letter.data["value"] == "ff"
    await asyncio.to_thread(store.close)


async def fail(store: Any, rollout_id: str, **fields: Any) -> None:
    await store.update_attempt(rollout_id, "latest", status="failed", **fields)


async def test_every_rollout_that_was_given_up_has_a_letter_with_its_last_error(store: Any) -> None:
    once = agl.RolloutConfig(max_attempts=1)
    told = await store.start_rollout("told", config=once)
    silent = await store.start_rollout("silent", config=once)
    twice = await store.start_rollout("twice", config=agl.RolloutConfig(max_attempts=2, retry_condition=["failed"]))
    good = await store.start_rollout("good")
    await fail(store, told.rollout_id, metadata={"error": "ValueError: no such city"})
    await fail(store, silent.rollout_id)
    await fail(store, twice.rollout_id, metadata={"error": "the first"})
    await store.update_attempt(good.rollout_id, "latest", status="succeeded")
    entries = entries_from(await store.query_dead_letters())
    assert [(entry.letter.rollout_id, entry.letter.reason) for entry in entries] == [
        (told.rollout_id, "ValueError: no such city (attempt 1 was the last one and ended as failed)"),
        (silent.rollout_id, "attempt 1 was the last one and ended as failed"),
    ]
    again = await store.dequeue_rollout("w")
    await fail(store, again.rollout_id, metadata={"error": "the second"})
    entry = entries_from(await store.query_dead_letters())[-1]
    assert (
        entry.letter.reason.startswith("the second (attempt 2") and entry.letter.attempt_id == again.attempt.attempt_id
    )
    assert entry.letter.id == rollout_letter_id(twice.rollout_id, 0) and entry.letter.tries == 2

    await requeue(store, entry.letter)
    by_rollout = {
        entry.letter.rollout_id: entry.letter.settled for entry in entries_from(await store.query_dead_letters())
    }
    assert by_rollout == {told.rollout_id: "", silent.rollout_id: "", twice.rollout_id: "requeued"}
    await store.dequeue_rollout("w")
    await fail(store, twice.rollout_id)
    await store.dequeue_rollout("w")
    await fail(store, twice.rollout_id, metadata={"error": "the last"})
    newest = entries_from(await store.query_dead_letters())[-1].letter
    assert (newest.id, newest.settled) == (rollout_letter_id(twice.rollout_id, 1), "")


async def test_letters_of_archived_rollouts_are_found_by_stores_and_by_who_only_looks(tmp_path: Path) -> None:
    settings = StoreSettings(archive_after=5, snapshot_every=1000)
    path = tmp_path / "log.db"
    failed: list[str] = []
    with open_store(f"sqlite:///{path}", settings=settings) as store:  # type: ignore[attr-defined]
        for number in range(20):
            begun = await store.start_rollout(number, config=agl.RolloutConfig(max_attempts=1))
            if number % 3:
                await store.update_attempt(begun.rollout_id, "latest", status="succeeded")
            else:
                await fail(store, begun.rollout_id, metadata={"error": f"error {number}"})
                failed.append(begun.rollout_id)
        store.engine.archive_index.flush()
        entries = entries_from(await store.query_dead_letters())
        assert {entry.letter.rollout_id for entry in entries} == set(failed) and len(entries) == 7
        await requeue(store, entries[0].letter)
    with open_log(f"sqlite:///{path}", readonly=True) as log:
        looked = dead_letters(log)
    assert [one.letter.settled for one in looked].count("requeued") == 1
    assert {one.letter.id: one.letter.reason for one in looked} == {one.letter.id: one.letter.reason for one in entries}


async def test_all_failed_rollouts_of_a_run_are_queued_again(store: Any) -> None:
    opened = await store.record_run_event("run.opened", None, {"name": "capitals"})
    made = []
    for number in range(5):
        run = {RUN_ID: opened["run_id"]} if number < 4 else {}
        begun = await store.start_rollout(number, config=agl.RolloutConfig(max_attempts=1), metadata=run)
        made.append(begun.rollout_id)
        await (
            fail(store, begun.rollout_id)
            if number
            else store.update_attempt(begun.rollout_id, "latest", status="succeeded")
        )
    await store.add_dead_letter(letter(made[0]))  # of an earlier generation, which was queued again by hand
    done = await requeue_run(store, "capitals")
    assert done == {"run_id": opened["run_id"], "rollout_ids": made[1:4]}
    statuses = {one.rollout_id: one.status for one in await store.query_rollouts()}
    assert [statuses[one] for one in made] == ["succeeded", "queuing", "queuing", "queuing", "failed"]
    assert (await requeue_run(store, opened["run_id"]))["rollout_ids"] == []
    with pytest.raises(agl.NotFound):
        await requeue_run(store, "no such run")
