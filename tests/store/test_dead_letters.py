"""Dead letters of a store: listed once whoever wrote them, settled by a retry, open again when that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.dead import DeadLetter, rollout_letter_id
from agentlightning.core.log import NewRecord
from agentlightning.projections.dead_letters import entries_from, requeue, write_letter
from agentlightning.projections.store import open_store


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
        "id": rollout_letter_id("default", rollout_id, 1),
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
        ("rollout", "rollout/default/ro-1/1"),
    ]
    assert entries[0].letter.data["value"] == "ff"
    await asyncio.to_thread(store.close)
