"""Brokers, store nodes and runners are killed under load, again and again: nothing acknowledged is lost, nothing ends twice."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from kafka_local import Cluster

from agentlightning.core.log.kafka import KafkaLog
from agentlightning.core.log.topics import SPANS
from agentlightning.core.model.resources import PromptTemplate
from agentlightning.core.model.rollout import RolloutConfig
from agentlightning.rest.client.client import LightningStoreClient

from .broker import leader_of
from .fleet import Fleet, Worker, audit
from .test_kafka_log import make_topics

SETTLE_SECONDS = 120.0
Trouble = Callable[[Fleet, Cluster, float], Awaitable[str]]
CONFIG = RolloutConfig(unresponsive_seconds=4, max_attempts=50, retry_condition=["failed", "timeout", "unresponsive"])


async def _load(client: LightningStoreClient, acknowledged: list[str], until: asyncio.Event) -> None:
    """Enqueue without a pause; what returned is acknowledged. The client rides outages out."""
    number = 0
    while not until.is_set():
        number += 1
        rollout = await client.enqueue_rollout({"seconds": 0.01, "n": number}, config=CONFIG)
        acknowledged.append(rollout.rollout_id)
        await asyncio.sleep(0.05)


def _victims(fleet: Fleet, cluster: Cluster, dice: random.Random) -> tuple[str, Worker | int]:
    kind = dice.choice(["broker", "node", "runner"])
    if kind == "broker":
        return kind, dice.choice(sorted(cluster.nodes))
    return kind, dice.choice(fleet.nodes if kind == "node" else fleet.runners)


async def _kill_again_and_again(fleet: Fleet, cluster: Cluster, seconds: float, dice: random.Random) -> dict[str, int]:
    kills = {"broker": 0, "node": 0, "runner": 0}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(dice.uniform(1.0, 3.0))
        kind, victim = _victims(fleet, cluster, dice)
        kills[kind] += 1
        if isinstance(victim, Worker):
            await asyncio.to_thread(victim.kill)
            await asyncio.sleep(dice.uniform(0.0, 1.0))
            victim.start()
        else:
            await asyncio.to_thread(cluster.kill, victim)
            await asyncio.sleep(dice.uniform(0.5, 2.0))
            await asyncio.to_thread(cluster.restart, victim)
    return kills


async def _break(fleet: Fleet, cluster: Cluster, seconds: float) -> str:
    dice = random.Random(seconds)
    kills = await _kill_again_and_again(fleet, cluster, seconds, dice)
    return f"{seconds:g} s, kills {kills}"


async def _away(fleet: Fleet, cluster: Cluster, seconds: float) -> str:
    await asyncio.sleep(2.0)
    for number in list(cluster.running):
        await asyncio.to_thread(cluster.kill, number)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(cluster.heal)
    return f"all brokers away for {seconds:g} s"


def test_a_frozen_broker_holds_up_questions_about_its_own_partitions_only_and_those_not_for_long(
    kafka_cluster: Cluster, kafka_cluster_url: str, kafka_cluster_prefix: str
) -> None:
    make_topics(kafka_cluster_url)
    with KafkaLog(kafka_cluster_url) as log:
        leaders = [asyncio.run(leader_of(log.address.bootstrap, f"{kafka_cluster_prefix}.spans", part)) for part in range(8)]  # pyright: ignore[reportAttributeAccessIssue]
        frozen = leaders[0]
        other = next(part for part, leader in enumerate(leaders) if leader != frozen)
        assert [log.ends(SPANS, part)[1] for part in (0, other)] == [0, 0]
        seconds: dict[int, float] = {}

        def ask(part: int) -> None:
            began = time.monotonic()
            assert log.ends(SPANS, part)[1] == 0
            seconds[part] = time.monotonic() - began

        kafka_cluster.freeze(frozen)
        asking = threading.Thread(target=ask, args=(0,))
        asking.start()
        try:
            ask(other)
            assert 0 not in seconds and seconds[other] < 4
            asking.join(25)
            assert 0 in seconds, "the broker is still frozen, and another one leads its partitions by now"
        finally:
            kafka_cluster.thaw(frozen)
            asking.join(60)


@pytest.mark.parametrize(
    "trouble, seconds",
    [
        (_break, 20),
        (_away, 8),
        pytest.param(_break, 120, marks=pytest.mark.chaos),
        pytest.param(_away, 30, marks=pytest.mark.chaos),
    ],
)
async def test_trouble_under_load_loses_nothing_and_ends_nothing_twice(
    kafka_cluster: Cluster, kafka_cluster_url: str, tmp_path: Path, trouble: Trouble, seconds: int
) -> None:
    await asyncio.to_thread(make_topics, kafka_cluster_url)
    fleet = Fleet(kafka_cluster_url, tmp_path / "fleet")
    clients: list[LightningStoreClient] = []
    acknowledged: list[str] = []
    stop = asyncio.Event()
    try:
        for _ in range(2):
            fleet.add_node()
        await asyncio.to_thread(fleet.await_nodes)
        for number in range(3):
            fleet.add_runner(fleet.endpoints[number % 2])
        clients = [LightningStoreClient(endpoint) for endpoint in fleet.endpoints]
        await clients[0].add_resources({"prompt": PromptTemplate(template="{n}", engine="f-string")})
        loads = [asyncio.create_task(_load(client, acknowledged, stop)) for client in clients]
        happened = await trouble(fleet, kafka_cluster, seconds)
        stop.set()
        await asyncio.gather(*loads)
        began = time.monotonic()
        done = await clients[0].wait_for_rollouts(rollout_ids=acknowledged, timeout=SETTLE_SECONDS)
        settled = time.monotonic() - began
        assert len(done) == len(acknowledged), f"{len(acknowledged) - len(done)} acknowledged rollouts never ended"
        assert {one.status for one in done} == {"succeeded"}
        stopped = await asyncio.to_thread(fleet.stop)
    finally:
        for client in clients:
            await client.close()
        await asyncio.to_thread(fleet.kill)
    said = "".join(node.said.read_text() for node in fleet.nodes)
    assert "Traceback" not in said, said[said.index("Traceback") - 500 :][:3000]
    with await asyncio.to_thread(KafkaLog, kafka_cluster_url) as log:
        found = await asyncio.to_thread(audit, log)
    assert all(found.finished(rollout_id) for rollout_id in acknowledged)
    assert len(stopped) == 2
    for name, (position, fingerprint) in stopped.items():
        assert found.prints[position] == fingerprint, f"{name} folded another history"
    attempts = sum(found.claims.values())
    print(
        f"\n{happened}: {len(acknowledged)} rollouts acknowledged, all ended ({settled:.1f} s after the load); "
        f"{attempts} attempts, {found.state.position} events, {found.lost_claims} of {found.proposed_claims} claims lost"
    )
