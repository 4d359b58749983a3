"""A broker that is away: callers by policy, closing in time, threads that wait are told."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from kafka_local import Cluster

from agentlightning.core.errors import LogClosed, LogError, UnknownOutcome
from agentlightning.core.log.kafka import KafkaLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store
from tests.core.log.log_contract import append, new, try_append

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
    assert time.monotonic() - began < 15
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
    assert time.monotonic() - began < 15


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


def test_a_store_whose_broker_is_away_says_so_and_ends_in_time_with_calls_pending(cluster: Cluster, tmp_path: Path) -> None:
    url = f"kafka://{cluster.bootstrap}/{random_prefix()}"
    make_topics(url)
    said = tmp_path / "store.out"
    with said.open("wb") as out:
        command = [sys.executable, "-m", "agentlightning", "store", "--log", url, "--port", "0", "--json"]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    calling: list[threading.Thread] = []
    try:
        while b"endpoint" not in said.read_bytes():
            assert process.poll() is None, said.read_text()
            time.sleep(0.05)
        served = next(json.loads(row) for row in said.read_text().splitlines() if '"endpoint"' in row)
        base = f"{served['endpoint']}/v1/agl"
        rollout = _call(f"{base}/rollouts", {"input": "x"})[1]
        assert _call(f"{base}/health")[0] == 200
        cluster.kill(1)
        spans = f"{base}/spans?rollout_id={rollout['rollout_id']}"
        for number in range(12):
            body = {"input": number} if number % 2 else None
            thread = threading.Thread(target=_call, args=(f"{base}/rollouts" if body else spans, body))
            thread.start()
            calling.append(thread)
        time.sleep(3.5)
        assert _call(f"{base}/health")[0] == 503
        status, answer = _call(f"{base}/rollouts/{rollout['rollout_id']}")
        assert status == 503 and "cut off from its log" in answer["detail"]
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        seconds = time.monotonic() - began
        print(f"ended {seconds:.1f} s after SIGTERM with the broker away")
        assert seconds < 15
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for thread in calling:
            thread.join(30)


def _call(url: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except (OSError, ValueError):  # a call that was under way when the store ended
        return 0, None
