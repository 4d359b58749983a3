"""A page of rollouts is what looking at all of them gives, and costs what is on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.errors import InvalidInput
from agentlightning.core.model.query import page
from agentlightning.core.model.rollout import EnqueueRolloutRequest, Rollout
from agentlightning.projections.archive import index
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store import rollout_query
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store

from .tools import claim

SETTINGS = StoreSettings(archive_after=60)
FIELDS = [None, "rollout_id", "start_time", "end_time", "mode", "resources_id", "status"]
STATUSES = ["queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing"]


async def live(store: EventLogStore, random: Random, turns: int, made: list[str]) -> None:
    """Some life: batches that share their time, ends of all kinds, and finished rollouts that are begun anew."""
    for _ in range(turns):
        what = random.random()
        if what < 0.3:
            requests = [
                EnqueueRolloutRequest(
                    input={"n": len(made)},
                    mode=random.choice([None, "train", "val", "test"]),
                    resources_id=random.choice([None, "rs-b", "rs-a", "rs-é"]),
                )
                for _ in range(random.randint(1, 6))
            ]
            made.extend(one.rollout_id for one in await store.enqueue_many_rollouts(requests))
        elif what < 0.9 and (taken := await store.dequeue_rollout(worker_id="w")) is not None:
            if random.random() < 0.9:
                await store.update_attempt(taken.rollout_id, "latest", status=random.choice(["succeeded", "failed"]))
        elif made:
            one = random.choice(made)
            if random.random() < 0.5:
                await store.update_rollout(one, status=random.choice(["cancelled", "queuing", "succeeded"]))
            else:
                await store.start_attempt(one)


@pytest.fixture(params=["memory", "file", "written", "reopened"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[EventLogStore, list[str]]]:
    random, made = Random(7), list[str]()
    url = f"sqlite:///{tmp_path / 'log.db'}"
    opened: Any = InMemoryLightningStore(settings=SETTINGS) if request.param == "memory" else open_store(url, settings=SETTINGS)
    await live(opened, random, 350, made)
    if request.param in ("memory", "written"):
        opened.engine.archive_index.flush()
        await live(opened, random, 80, made)
    if request.param == "reopened":
        opened.close()
        opened = open_store(url, settings=SETTINGS)
    yield opened, made
    opened.close()


def any_query(random: Random, made: list[str]) -> dict[str, Any]:
    query: dict[str, Any] = {}
    if random.random() < 0.6:
        query["status_in"] = random.sample(STATUSES, random.randint(0, 5))
    if random.random() < 0.4:
        query["rollout_id_in"] = [*random.choices(made, k=random.randint(0, 12)), "ro-none"][random.randint(0, 1) :]
    if random.random() < 0.4:
        query["rollout_id_contains"] = random.choice(["", "a", "7", "ro-", "-0", "zz"])
    query["filter_logic"] = random.choice(["and", "or"])
    query["sort_by"] = random.choice(FIELDS)
    query["sort_order"] = random.choice(["asc", "desc"])
    query["limit"] = random.choice([-1, 0, 1, 5, 20, 10**30])
    query["offset"] = random.choice([0, 0, 1, 7, 50, 200, 10**6, 10**30])
    return query


def evaluated(everything: list[Rollout], query: dict[str, Any]) -> Any:
    """All rollouts, filtered, sorted and cut."""
    filters: Any = {
        "status": {"within": query.get("status_in")},
        "rollout_id": {"within": query.get("rollout_id_in"), "contains": query.get("rollout_id_contains")},
        "_aggregate": query["filter_logic"],
    }
    rest = {name: query[name] for name in ("sort_by", "sort_order", "limit", "offset")}
    return page(everything, filters=filters, model=Rollout, **rest)


async def seen(store: EventLogStore, made: list[str]) -> list[Rollout]:
    found = [await store.get_rollout_by_id(one) for one in made]
    return [one for one in found if one is not None]


@pytest.mark.parametrize("slack", [0, rollout_query.SLACK])
async def test_a_page_is_what_looking_at_all_rollouts_gives(
    store: tuple[EventLogStore, list[str]], slack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_query, "SLACK", slack)
    opened, made = store
    everything = await seen(opened, made)
    assert len(everything) == len(made) and sum(opened.engine.archive_index.counts()["succeeded"]) > 50
    random = Random(slack)
    for _ in range(200):
        query = any_query(random, made)
        got, wanted = await opened.query_rollouts(**query), evaluated(everything, query)
        assert (got.total, got.limit, got.offset) == (wanted.total, wanted.limit, wanted.offset), query
        assert list(got) == list(wanted) and list(map(type, got)) == list(map(type, wanted)), query


async def test_pages_are_right_while_rollouts_move_into_the_index_and_out_of_it(store: tuple[EventLogStore, list[str]]) -> None:
    opened, made = store
    created = len(made)
    over = asyncio.Event()

    async def move() -> None:
        random = Random(3)
        for _ in range(30):
            await live(opened, random, 5, made)
            await asyncio.to_thread(opened.engine.archive_index.flush)
        over.set()

    async def look() -> None:
        while not over.is_set():
            found = await opened.query_rollouts(sort_by="start_time", sort_order="desc")
            ids = [one.rollout_id for one in found]
            assert len(ids) == len(set(ids)) == found.total and set(ids) >= set(made[:created])

    await asyncio.gather(move(), look(), look())


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 20},
        {"limit": 20, "offset": 60},
        {"limit": 20, "status_in": ["succeeded"]},
        {"limit": 20, "status_in": ["failed", "succeeded"], "sort_by": "end_time", "sort_order": "desc", "offset": 100},
        {"limit": 20, "sort_by": "mode", "sort_order": "desc"},
        {"limit": 20, "sort_by": "rollout_id", "rollout_id_contains": "a"},
    ],
)
async def test_a_page_decodes_no_archived_rollout_but_its_own(
    store: tuple[EventLogStore, list[str]], query: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, _ = store
    opened.engine.archive_index.flush()
    read = decoding(monkeypatch)
    shown = await opened.query_rollouts(**query)
    assert shown.total > 20 and len(read) <= len(shown) == 20


async def test_what_is_open_or_named_is_found_without_the_archive(
    store: tuple[EventLogStore, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, made = store
    opened.engine.archive_index.flush()
    read = decoding(monkeypatch)
    archived = next(one for one in made if opened.engine.node.state.archived.get(one) is not None)
    assert [one.rollout_id for one in await opened.query_rollouts([archived])] == [archived] and len(read) == 1
    monkeypatch.setattr(opened.engine.archive_index, "reading", None)
    assert (await opened.query_rollouts(status_in=["queuing", "requeuing", "running"], sort_by="start_time")).total >= 0
    hot = next(iter(opened.engine.node.state.rollouts))
    assert [one.rollout_id for one in await opened.query_rollouts([hot, "ro-none"])] == [hot]


def decoding(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every packed rollout that is decoded from now on."""
    read: list[bytes] = []
    real = index.unpack

    def counted(body: bytes) -> Any:
        read.append(body)
        return real(body)

    for module in (index, rollout_query):
        monkeypatch.setattr(module, "unpack", counted)
    return read


async def test_what_cannot_be_a_page_is_refused_whatever_there_is() -> None:
    with InMemoryLightningStore() as opened:
        for query in (
            {"sort_by": "input"}, {"sort_by": "nonsense"}, {"sort_order": "up"}, {"limit": -2}, {"offset": -1},
            {"filter_logic": "xor"}, {"rollout_id_contains": 3}, {"status_in": "queuing"},
        ):  # fmt: skip
            with pytest.raises(InvalidInput):
                await opened.query_rollouts(**query)  # type: ignore[arg-type]
        await opened.enqueue_rollout(1)
        assert isinstance(await claim(opened), agl.AttemptedRollout)
