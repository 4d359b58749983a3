"""Runners in a consumer group on a real broker: hints, stealing, rebalances, and processes that are killed or frozen."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from agentlightning.core.log.kafka import KafkaLog
from agentlightning.core.log.topics import TASKS
from agentlightning.core.model.rollout import RolloutConfig
from agentlightning.projections.queue.task_hints import GROUP
from agentlightning.projections.store.store import EventLogStore

from .broker import Broker
from .crew import Attempt, Watch, crew_on

PATIENCE_SECONDS = 60.0
UNRESPONSIVE_SECONDS = 4.0
RETRIED = RolloutConfig(unresponsive_seconds=UNRESPONSIVE_SECONDS, max_attempts=3, retry_condition=["unresponsive"])


async def until(true: Any, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def work(store: EventLogStore, lengths: list[float], config: RolloutConfig | None = None) -> list[str]:
    """Enqueue; the ids of the rollouts."""
    if await store.get_latest_resources() is None:
        await store.add_resources({"prompt": "x"})
    return [(await store.enqueue_rollout(length, config=config)).rollout_id for length in lengths]


async def done(store: EventLogStore, ids: list[str]) -> None:
    """Wait until all have succeeded."""
    ended = await store.wait_for_rollouts(ids, timeout=PATIENCE_SECONDS)
    assert [one.status for one in ended] == ["succeeded"] * len(ids)


class Stubborn(ConsumerRebalanceListener):
    """A member that does not give its partitions back for a while, and so holds the group's rebalance open."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    async def on_partitions_revoked(self, revoked: Any) -> None:  # type: ignore[override]
        if revoked:
            self.asked.set()
            await asyncio.sleep(15)

    async def on_partitions_assigned(self, assigned: Any) -> None:  # type: ignore[override]
        """Nothing."""


def member(broker: Broker, url: str, listener: ConsumerRebalanceListener | None = None) -> AIOKafkaConsumer:
    """A plain consumer in the group of runners."""
    prefix = url.rpartition("/")[2]
    made = AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap,
        group_id=f"{prefix}.{GROUP}",
        enable_auto_commit=False,
        heartbeat_interval_ms=200,
        partition_assignment_strategy=(StickyPartitionAssignor,),
    )
    made.subscribe([f"{prefix}.{TASKS}"], listener=listener)
    return made


def attempts_of(watch: Watch, rollout_id: str) -> list[Attempt]:
    return [one for one in watch.attempts if one.rollout_id == rollout_id]


def test_hints_are_claimed_and_committed_and_every_attempt_has_one_owner(
    kafka_broker: Broker, kafka_url: str, tmp_path: Path
) -> None:
    async def scene() -> None:
        await asyncio.to_thread(crew.start, 3)
        ids = await work(store, [0.05] * 60)
        await done(store, ids)
        assert len(watch.attempts) == 60 and len({one.rollout_id for one in watch.attempts}) == 60
        assert len({one.worker for one in watch.attempts}) == 6
        prefix = kafka_url.rpartition("/")[2]
        probe = AIOKafkaConsumer(bootstrap_servers=kafka_broker.bootstrap, group_id=f"{prefix}.{GROUP}")
        await probe.start()
        try:
            places = await _places(probe, f"{prefix}.{TASKS}")
            ends = await probe.end_offsets(places)

            async def behind() -> int:
                return sum([ends[place] - (await probe.committed(place) or 0) for place in places])

            deadline = time.monotonic() + 10
            while await behind():
                assert time.monotonic() < deadline, f"{await behind()} hints were not committed"
                await asyncio.sleep(0.1)
            assert sum(ends.values()) >= 60
        finally:
            await probe.stop()

    with crew_on(kafka_url, tmp_path, "--slots", "2") as (store, crew, watch):
        asyncio.run(scene())
        print(f"\n{watch.claims} claims, {watch.lost} in vain")


async def _places(probe: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    await probe._client.add_topic(topic)
    await until(lambda: probe.partitions_for_topic(topic))
    return [TopicPartition(topic, partition) for partition in probe.partitions_for_topic(topic) or ()]


def test_26_without_hints_and_with_a_rebalance_held_open_the_queue_drains(
    kafka_broker: Broker, kafka_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = KafkaLog.publish

    def without_hints(self: KafkaLog, topic: str, partition: int, records: Any, done: Any) -> None:
        if topic != TASKS:
            publish(self, topic, partition, records, done)

    monkeypatch.setattr(KafkaLog, "publish", without_hints)

    async def scene() -> None:
        stubborn = Stubborn()
        first = member(kafka_broker, kafka_url, stubborn)
        await first.start()
        await until(first.assignment)
        try:
            await asyncio.to_thread(crew.start, 2)  # their joining asks for a rebalance, which does not come to an end
            await until(stubborn.asked.is_set)
            began = time.monotonic()
            await done(store, await work(store, [0.05] * 4))
            watch.attempts.clear()
            for _ in range(10):
                await done(store, await work(store, [0.05]))
            assert time.monotonic() - began < 14, "the rebalance was over before the work was"
            assert sorted(watch.waits())[5] < 0.050
        finally:
            await first.stop()

    with crew_on(kafka_url, tmp_path) as (store, crew, watch):
        asyncio.run(scene())
        print(f"\nmedian wait {sorted(watch.waits())[5] * 1e3:.0f} ms, longest {max(watch.waits()) * 1e3:.0f} ms")


def test_a_rebalance_touches_no_running_work(kafka_broker: Broker, kafka_url: str, tmp_path: Path) -> None:
    async def scene() -> None:
        await asyncio.to_thread(crew.start, 2)
        ids = await work(store, [3.0, 3.0])
        await until(lambda: len(watch.attempts) == 2)
        for _ in range(2):  # comes and goes: four rebalances
            guest = member(kafka_broker, kafka_url)
            await guest.start()
            await until(guest.assignment)
            await guest.stop()
        await done(store, ids)
        assert [len(attempts_of(watch, one)) for one in ids] == [1, 1]
        await done(store, await work(store, [0.05] * 10))

    with crew_on(kafka_url, tmp_path) as (store, crew, watch):
        asyncio.run(scene())


def test_a_killed_runner_is_replaced_in_time_and_a_frozen_one_changes_nothing(kafka_url: str, tmp_path: Path) -> None:
    async def scene() -> None:
        await asyncio.to_thread(crew.start, 3)
        await done(store, await work(store, [0.3] * 6))
        for how in (signal.SIGKILL, signal.SIGSTOP):
            (rollout_id,) = await work(store, [2.0], RETRIED)
            await until(lambda rollout_id=rollout_id: attempts_of(watch, rollout_id))
            await asyncio.sleep(0.5)
            first = attempts_of(watch, rollout_id)[0]
            victim = next(one for one in crew.processes if f"-{one.pid}-" in first.worker)
            victim.send_signal(how)
            ended = time.time()
            await done(store, [rollout_id])
            known = await store.get_rollout_by_id(rollout_id)
            _, second = attempts_of(watch, rollout_id)
            assert second.worker != first.worker and second.claimed - ended <= UNRESPONSIVE_SECONDS + 1.0
            print(f"\n{how.name}: claimed elsewhere after {second.claimed - ended:.2f} s")
            if how is signal.SIGSTOP:
                victim.send_signal(signal.SIGCONT)
                number = crew.processes.index(victim)
                before = crew.said(number).count("Completed in")
                await until(lambda number=number, before=before: crew.said(number).count("Completed in") > before)
                await asyncio.sleep(1)
                assert await store.get_rollout_by_id(rollout_id) == known

    with crew_on(kafka_url, tmp_path) as (store, crew, watch):
        asyncio.run(scene())
