"""A node with a long log behind it: it starts from a snapshot, serves at once, and knows what is finished a little later."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from agentlightning.core.log.kafka import KafkaLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store
from tests.benchmarks.bench_rebuild import History
from tests.core.log.log_contract import append

from .test_kafka_log import make_topics

EVENTS = 20_000


def _opened(url: str, **options: Any) -> EventLogStore:
    store = open_store(url, **options)
    assert isinstance(store, EventLogStore)
    return store


async def test_a_node_without_an_index_serves_from_the_snapshot_and_fills_it(kafka_url: str) -> None:
    settings = StoreSettings(archive_after=1_000, snapshot_every=EVENTS)
    address = await asyncio.to_thread(make_topics, kafka_url)

    def write() -> tuple[int, str]:
        history = History(settings)
        with KafkaLog(address) as log:
            while history.state.position < EVENTS:
                append(log, CONTROL, *history.records(2_000))
        with _opened(kafka_url, settings=settings) as store:
            store.engine.snapshot()
            return store.fingerprint()

    before = await asyncio.to_thread(write)
    began = time.perf_counter()
    store = await asyncio.to_thread(lambda: _opened(kafka_url, settings=settings))
    seconds = time.perf_counter() - began
    try:
        report = store.report()
        print(f"{report['events']} events behind a snapshot at {report['from_snapshot']}: opened in {seconds:.2f} s")
        assert store.fingerprint() == before and report["from_snapshot"] > EVENTS - 100
        await store.enqueue_rollout("served while the index is being made")
        found = await store.query_rollouts(status_in=["succeeded"], limit=10)
        assert found.total == EVENTS // 4
        first = found.items[0]
        assert await store.get_rollout_by_id(first.rollout_id) == first
        assert store.engine.archive_index.position >= report["from_snapshot"]
    finally:
        await asyncio.to_thread(store.close)
