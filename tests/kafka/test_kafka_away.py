"""A broker that is away: callers by policy, closing in time, threads that wait are told."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from kafka_local import Cluster

from agentlightning.core.errors import LogClosed, LogError, UnknownOutcome
from agentlightning.core.kafka_log import KafkaLog
from agentlightning.core.topics import CONTROL
from agentlightning.projections.store import EventLogStore, open_store
from tests.core.log_contract import append, new, try_append

from .fixtures import random_prefix
from .test_kafka_log import make_topics
from .test_lost_suffix import cluster as cluster

pytestmark = pytest.mark.kafka


def test_a_broker_that_is_away_fails_fast_where_that_is_asked_for_and_closing_does_not_wait(cluster: Cluster) -> None:
    url = f"kafka://{cluster.bootstrap}/{random_prefix()}"
    make_topics(url)
    log = KafkaLog(f"{url}?wait_seconds=2")
    append(log, CONTROL, new(1))
    cluster.kill(1)
    began = time.monotonic()
    assert isinstance(try_append(log, CONTROL, new(2)), UnknownOutcome)
    assert 1.5 < time.monotonic() - began < 6
    told: list[LogError] = []

    def ask() -> None:
        try:
            patient.ends(CONTROL, 0)
        except LogError as error:
            told.append(error)

    began = time.monotonic()
    log.close()
    assert time.monotonic() - began < 25
    cluster.restart(1)
    patient = KafkaLog(url)
    cluster.kill(1)
    waiting = threading.Thread(target=ask)
    waiting.start()
    time.sleep(0.5)
    began = time.monotonic()
    patient.close()
    waiting.join(10)
    assert [type(error) for error in told] == [LogClosed]
    assert time.monotonic() - began < 45


async def test_an_outage_is_ridden_out_with_no_double_effect(cluster: Cluster, tmp_path: Path) -> None:
    url = f"kafka://{cluster.bootstrap}/{random_prefix()}"
    await asyncio.to_thread(make_topics, url)
    store = await asyncio.to_thread(open_store, url)
    assert isinstance(store, EventLogStore)
    try:
        before = [await store.enqueue_rollout({"n": n}) for n in range(3)]
        await asyncio.to_thread(cluster.kill, 1)
        pending = [asyncio.create_task(store.enqueue_rollout({"late": n})) for n in range(20)]
        await asyncio.sleep(3)
        assert not any(task.done() for task in pending)
        await asyncio.to_thread(cluster.restart, 1)
        late = await asyncio.wait_for(asyncio.gather(*pending), 60)
        found = await store.query_rollouts()
        assert {one.rollout_id for one in found} == {one.rollout_id for one in [*before, *late]}
        assert found.total == 23
    finally:
        await asyncio.to_thread(store.close)
