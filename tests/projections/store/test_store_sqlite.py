"""The contract on the SQLite log, and what only a file can promise: everything is there after closing and opening."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.core.errors import LogClosed
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store

from .store_contract import StoreContract
from .tools import begin, claim, ids, span


def opened(path: Path, **options: Any) -> EventLogStore:
    store = open_store(f"sqlite:///{path / 'log.db'}", **options)
    assert isinstance(store, EventLogStore)
    return store


class TestSqliteStore(StoreContract):
    @pytest.fixture
    async def store(self, clock: ManualClock, tmp_path: Path) -> AsyncIterator[agl.LightningStore]:
        with opened(tmp_path, clock=clock) as store:
            yield store


async def _everything(store: agl.LightningStore) -> list[object]:
    rollouts = list(await store.query_rollouts())
    spans = [list(await store.query_spans(one.rollout_id)) for one in rollouts]
    attempts = [list(await store.query_attempts(one.rollout_id)) for one in rollouts]
    versions = [list(await store.query_resource_versions(one.resources_id)) for one in await store.query_resources()]
    counts = {key: value for key, value in (await store.statistics()).items() if key != "uptime"}
    return [rollouts, spans, attempts, versions, list(await store.query_workers()), counts]


@pytest.mark.parametrize("archive_after", [3, 50_000])
async def test_closing_and_opening_keeps_everything(tmp_path: Path, archive_after: int) -> None:
    settings = StoreSettings(archive_after=archive_after)
    with opened(tmp_path, settings=settings) as store:
        made = await store.add_resources({"p": "one"})
        await store.update_resources(made.resources_id, {"p": "two"})
        for number in range(12):
            rollout = await store.enqueue_rollout({"n": number}, metadata={"n": number})
            attempted = await claim(store, f"w{number % 3}")
            await store.add_span(span(attempted, attributes={"n": number}))
            if number % 4:
                await store.update_attempt(rollout.rollout_id, "latest", status="succeeded", metadata={"m": 1})
        await store.enqueue_rollout("x" * 1_000_000)
        await store.update_worker("w0", {"cpu": 1})
        before, print_before = await _everything(store), store.fingerprint()
    with opened(tmp_path, settings=settings) as store:
        after = await _everything(store)
        assert store.fingerprint() == print_before
        for was, now in zip(before, after):
            assert now == was
        assert (await claim(store)).input == "x" * 1_000_000


async def test_the_queue_keeps_its_order_over_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        queued = ids([await store.enqueue_rollout(number) for number in range(5)])
        await claim(store)
    with opened(tmp_path) as store:
        assert ids(await store.dequeue_many_rollouts(limit=9)) == queued[1:]


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = opened(tmp_path)
    attempted = await begin(store)
    store.close()
    store.close()
    for call in (
        lambda: store.enqueue_rollout(1),
        lambda: store.dequeue_rollout(),
        lambda: store.add_span(span(attempted)),
        lambda: store.update_attempt(attempted.rollout_id, "latest", status="failed"),
    ):
        with pytest.raises(LogClosed):
            await call()


@pytest.mark.parametrize("url", ["", "log.db", "sqlite://log.db", "sqlite:///", "ftp://x", "redis://x"])
def test_an_address_of_another_form_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        open_store(url)
