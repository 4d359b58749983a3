"""Several store nodes on a real broker: shared signs of life, a frozen timekeeper, overlapping publishers, plain readers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer

import agentlightning as agl
from agentlightning.core.events import codec
from agentlightning.core.events.schema import AttemptExpired
from agentlightning.core.log.dead_letter import decode_letter
from agentlightning.core.log.topics import CONTROL, DEAD, FACTS, TASKS, partition_of
from agentlightning.projections.facts.derived_topic import DerivedTopic
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store
from tests.projections.store.tools import attempt_of, begin, claim, status_of
from tests.sources import ROOT

from .broker import Broker
from .test_kafka_log import make_topics

NODE = """
import sys, time
from agentlightning.rest.open_store import open_store
store = open_store(sys.argv[1])
while not store.engine.cluster.leadership.leads:
    time.sleep(0.02)
print("leads", flush=True)
sys.stdin.readline()
print(*store.fingerprint(), store.engine.node.writer, flush=True)
store.close()
"""


def program(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@asynccontextmanager
async def node_on(url: str, **options: Any) -> AsyncIterator[EventLogStore]:
    store = await asyncio.to_thread(open_store, url, **options)
    assert isinstance(store, EventLogStore) and store.engine.cluster is not None
    try:
        assert await asyncio.to_thread(store.engine.cluster.leadership.joined.wait, 30)
        yield store
    finally:
        await asyncio.to_thread(store.close)


async def until(happened: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.01)


async def records_of(broker: Broker, topic: str, count: int) -> list[Any]:
    """What any consumer of Kafka reads, in the order of each partition: all there is, once `count` different ids are there."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    found: list[Any] = []
    deadline = time.monotonic() + 20
    async with consumer:
        while True:
            fetched = await consumer.getmany(timeout_ms=300)
            found.extend(record for records in fetched.values() for record in records)
            if not fetched and len({json.loads(record.value)["id"] for record in found}) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} records of {topic}, not {count}"


async def test_19_and_20_the_frozen_leader_expires_nobody_and_another_acts_after_the_grace(kafka_url: str) -> None:
    await asyncio.to_thread(make_topics, kafka_url)
    leader = program("-c", NODE, kafka_url)
    assert leader.stdout is not None
    try:
        assert await asyncio.to_thread(leader.stdout.readline) == "leads\n"
        async with node_on(kafka_url) as node:
            assert node.engine.cluster is not None and not node.engine.cluster.leadership.leads
            due = await begin(node, agl.RolloutConfig(timeout_seconds=2), "a")
            alive = await begin(node, agl.RolloutConfig(unresponsive_seconds=4), "Worker-0")
            os.kill(leader.pid, signal.SIGSTOP)
            began, acted = time.monotonic(), 0.0
            while time.monotonic() < began + 13:
                if time.monotonic() > began + 9.5:
                    os.kill(leader.pid, signal.SIGCONT)
                await node.update_worker("Worker-0", incarnation="i", attempts=[(alive.rollout_id, alive.attempt.attempt_id)])
                if not acted and await status_of(node, due.rollout_id) == "failed":
                    acted = time.monotonic() - began
                await asyncio.sleep(0.25)
            print(f"\nleader frozen: the other node acted {acted:.1f} s after a start with a timeout of 2 s")
            assert 5.5 <= acted <= 9.5  # the frozen one is out 5.5 to 6 s after its last heartbeat, the grace ends at 7
            attempt = await attempt_of(node, alive.rollout_id)
            assert attempt.status == "preparing"
            out, _ = await asyncio.to_thread(leader.communicate, "\n", 30)
            position, fingerprint, writer = out.split()
            await until(lambda: node.fingerprint()[0] >= int(position), "the same records here")
            events = [codec.decode(one.value) for one in await asyncio.to_thread(node.engine.log.read, CONTROL, 0, 0)]
            expired = [one for one in events if isinstance(one.event, AttemptExpired)]
            assert [one.writer for one in expired] == [node.engine.node.writer] != [writer]
            assert node.fingerprint()[0] != int(position) or node.fingerprint()[1] == fingerprint
            await until(lambda: bool(node.engine.cluster and node.engine.cluster.leadership.leads), "it leads now")
    finally:
        leader.kill()
        leader.communicate()


async def test_21_two_lives_of_one_worker_beat_at_one_node_and_are_judged_by_another(kafka_url: str) -> None:
    await asyncio.to_thread(make_topics, kafka_url)
    settings = StoreSettings(worker_lost_seconds=3)
    async with node_on(kafka_url, settings=settings) as judge, node_on(kafka_url, settings=settings) as heard:
        assert judge.engine.cluster is not None and judge.engine.cluster.leadership.leads
        held: list[agl.AttemptedRollout] = []
        for life in ("one", "two"):
            await heard.update_worker("Worker-0", incarnation=life)
            await heard.enqueue_rollout(life)
            held.append(await claim(heard, "Worker-0", incarnation=life))
        began, lost = time.monotonic(), 0.0
        while time.monotonic() < began + 6:
            await heard.update_worker("Worker-0", incarnation="two")
            if not lost and await status_of(judge, held[0].rollout_id) == "requeuing":
                lost = time.monotonic() - began
            await asyncio.sleep(0.3)
        print(f"\nof two lives of Worker-0 the silent one was lost after {lost:.1f} s (limit 3 s)")
        assert 2.5 <= lost <= 4.5
        assert await status_of(judge, held[1].rollout_id) == "preparing"
        writers = {
            one.writer
            for one in (codec.decode(record.value) for record in await asyncio.to_thread(judge.engine.log.read, CONTROL, 0, 0))
            if isinstance(one.event, AttemptExpired)
        }
        assert writers == {judge.engine.node.writer}


async def test_28_overlapping_publishers_a_plain_consumer_sees_every_fact(
    kafka_broker: Broker, kafka_prefix: str, kafka_url: str
) -> None:
    await asyncio.to_thread(make_topics, kafka_url)
    async with node_on(kafka_url) as one, node_on(kafka_url) as two:
        for store in (one, two):
            assert store.engine.cluster is not None and store.engine.cluster.publisher is not None
            store.engine.cluster.publisher._leads = lambda: True
        await one.add_resources({"p": agl.PromptTemplate(template="x", engine="f-string")})
        config = agl.RolloutConfig(max_attempts=1)
        began = time.perf_counter()
        for number in range(60):
            store = (one, two)[number % 2]
            attempted = await store.start_rollout(number, config=config)
            await store.update_attempt(attempted.rollout_id, "latest", status="failed" if number == 7 else "succeeded")
        await asyncio.gather(*(two.enqueue_rollout(number) for number in range(40)))
        worked = time.perf_counter() - began
        derived = await asyncio.to_thread(lambda: (read_all(one, FACTS), read_all(one, TASKS)))
        published = await records_of(kafka_broker, f"{kafka_prefix}.{FACTS}", len(derived[0]))
        hints = await records_of(kafka_broker, f"{kafka_prefix}.{TASKS}", len(derived[1]))
        (letter,) = {decode_letter(one).id: decode_letter(one) for one in await dead_of(one)}.values()
        assert letter.tries == 1 and letter.reason.endswith("ended as failed")
    print(f"\n{len(derived[0])} facts in {worked:.1f} s, {len(published)} published by two at once")
    assert len(published) > len(derived[0]), "both published"
    assert once(published, 8) == by_key(derived[0])
    assert once(hints, 16) == by_key(derived[1])
    assert {name for name, _ in hints[0].headers} >= {"t", "id", "position"}


async def dead_of(store: EventLogStore) -> list[Any]:
    found: list[Any] = []
    deadline = time.monotonic() + 10
    while not found and time.monotonic() < deadline:
        found = list(await asyncio.to_thread(store.engine.log.read, DEAD, 0, 0))
        await asyncio.sleep(0.05)
    return found


def read_all(store: EventLogStore, topic: str) -> list[Any]:
    reader, found = DerivedTopic(store.engine.log, topic), []
    while records := reader.read():
        found.extend(records)
    return found


def by_key(records: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for record in records:
        found[record.key].append(json.loads(record.value))
    return found


def once(records: list[Any], partitions: int) -> dict[str, list[Any]]:
    """By key what is above the highest position seen in its partition."""
    found: dict[str, list[Any]] = defaultdict(list)
    highest: dict[int, tuple[int, int]] = {}
    for record in records:
        fact, key = json.loads(record.value), record.key.decode()
        assert record.partition == partition_of(key, partitions)
        at = (fact["position"], int(fact["id"].rpartition("/")[2]))
        if at > highest.get(record.partition, (-1, -1)):
            highest[record.partition] = at
            found[key].append(fact)
    return found


async def test_the_example_of_a_plain_consumer_prints_every_outcome(
    kafka_broker: Broker, kafka_prefix: str, kafka_url: str
) -> None:
    await asyncio.to_thread(make_topics, kafka_url)
    async with node_on(kafka_url) as store:
        wanted: set[str] = set()
        for number in range(5):
            attempted = await store.start_rollout(number)
            await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
            wanted.add(f"{attempted.rollout_id} succeeded")
        reader = program(str(ROOT / "examples" / "facts_consumer.py"), kafka_broker.bootstrap, kafka_prefix)
        try:
            assert reader.stdout is not None
            lines = reader.stdout
            printed = await asyncio.wait_for(asyncio.to_thread(lambda: {lines.readline().strip() for _ in range(5)}), 30)
        finally:
            reader.kill()
            reader.communicate()
        assert printed == wanted


async def test_a_node_that_is_killed_leads_no_longer_than_its_session(kafka_url: str) -> None:
    await asyncio.to_thread(make_topics, kafka_url)
    leader = program("-c", NODE, kafka_url)
    try:
        assert leader.stdout is not None and await asyncio.to_thread(leader.stdout.readline) == "leads\n"
        async with node_on(kafka_url) as node:
            peers: Any = node.engine.cluster
            assert not peers.leadership.leads
            leader.kill()
            began = time.monotonic()
            await until(lambda: peers.leadership.leads, "another leads")
            print(f"\nleader killed: another leads after {time.monotonic() - began:.1f} s")
    finally:
        leader.kill()
        leader.communicate()


async def test_facts_are_published_at_the_pace_of_the_log(kafka_url: str) -> None:
    count = 1500
    await asyncio.to_thread(make_topics, kafka_url)
    async with node_on(kafka_url) as store:
        publisher: Any = store.engine.cluster and store.engine.cluster.publisher
        began = time.perf_counter()

        async def one(number: int) -> None:
            attempted = await store.start_rollout(number)
            await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")

        for first in range(0, count, 64):
            await asyncio.gather(*(one(number) for number in range(first, min(first + 64, count))))
        worked = time.perf_counter() - began
        end = store.engine.node.state.position - 1
        await until(lambda: publisher._cursor == end, "everything is published")
        behind = time.perf_counter() - began - worked
        print(f"\n{count} rollouts in {worked:.2f} s, their facts {behind:.2f} s later")
        assert behind < 2
