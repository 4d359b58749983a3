"""What lies on the broker can be read with any Kafka tool, and a producer that failed is replaced without a double effect."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import OutOfOrderSequenceNumber

from agentlightning.cli.kafka import make_topics as init
from agentlightning.core.errors import StorageError, UnknownOutcome
from agentlightning.core.log.interface import Ack
from agentlightning.core.log.kafka import KafkaAddress, KafkaLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store
from tests.core.log.log_contract import new, try_append
from tests.core.log.sqlite.test_views import PAGE, one_rollout

from .broker import admin, apart
from .test_kafka_log import make_topics

NAMES = re.compile(r"\b(ro|at|rs)-[0-9a-f]+|\b[0-9a-f]{16}\b|(?<=\"seconds\": )[0-9.e-]+")


async def _opened(url: str) -> EventLogStore:
    await asyncio.to_thread(make_topics, url)
    store: Any = await asyncio.to_thread(open_store, url)
    return store


async def _raw(url: str, topic: str, partition: int = 0) -> list[Any]:
    bootstrap, prefix = url.removeprefix("kafka://").partition("?")[0].split("/")
    place = TopicPartition(f"{prefix}.{topic}", partition)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        found: list[Any] = []
        while len(found) < end:
            for messages in (await consumer.getmany(place, timeout_ms=500)).values():
                found.extend(messages)
        return found
    finally:
        await consumer.stop()


async def _published(url: str, partitions: int) -> set[int]:
    """The positions of which a fact is in the topic."""
    found = [one for part in range(partitions) for one in await _raw(url, "facts", part)]
    return {json.loads(one.value)["position"] for one in found}


async def test_headers_are_text_and_values_are_json(kafka_url: str) -> None:
    store = await _opened(kafka_url)
    try:
        rollout = await store.enqueue_rollout({"question": "why?"})
        fingerprint = store.fingerprint()
    finally:
        await asyncio.to_thread(store.close)
    opened, enqueued = (await _raw(kafka_url, CONTROL))[:2]
    headers = {name: value.decode() for name, value in enqueued.headers}
    assert headers["t"] == "rollouts.enqueued" and headers["r"] == rollout.rollout_id and "ns" not in headers
    assert len(headers["id"]) == 32 and int(headers["id"], 16)
    assert all(value.decode().isprintable() for _, value in opened.headers)
    shown = json.loads(enqueued.value)
    assert shown["event"]["t"] == "rollouts.enqueued" and shown["id"] == headers["id"]
    assert shown["event"]["rollouts"][0]["input"] == {"question": "why?"}
    again: Any = await asyncio.to_thread(open_store, kafka_url)
    try:
        assert again.fingerprint() == fingerprint, "another node folds the same"
    finally:
        await asyncio.to_thread(again.close)


async def test_the_guide_shows_what_a_plain_consumer_reads_of_one_rollout_in_all_topics(kafka_url: str, tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (program,) = re.findall(r"```python notest\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```text\n\$ python plain\.py localhost:9092 agl\n(.*?)```", text, re.DOTALL)
    (tmp_path / "plain.py").write_text(program, encoding="utf-8")
    store = await _opened(kafka_url)
    try:
        await one_rollout(store)
        log: Any = store.engine.log
        ended, partitions = store.fingerprint()[0] - 1, log.partitions_published("facts")
        while ended not in await _published(kafka_url, partitions):
            await asyncio.sleep(0.2)
    finally:
        await asyncio.to_thread(store.close)
    bootstrap, prefix = kafka_url.removeprefix("kafka://").split("/")
    command = [sys.executable, str(tmp_path / "plain.py"), bootstrap, prefix]
    printed = await asyncio.to_thread(subprocess.check_output, command, text=True)
    print(printed)
    rows = [line for line in printed.splitlines() if not line.startswith("liveness node/")]  # as many as it took time
    assert sorted(NAMES.sub("...", line) for line in rows) == sorted(NAMES.sub("...", line) for line in shown.splitlines())


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")
async def test_kcat_shows_the_control_topic(kafka_url: str) -> None:
    store = await _opened(kafka_url)
    await store.enqueue_rollout({"question": "why?"})
    await asyncio.to_thread(store.close)
    bootstrap, prefix = kafka_url.removeprefix("kafka://").split("/")
    command = ["kcat", "-b", bootstrap, "-C", "-t", f"{prefix}.control", "-o", "beginning", "-e", "-q", "-f", "%k %h %s\n"]
    done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, text=True, timeout=30)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("default t=log.opened,v=1,id=") and '"t":"rollouts.enqueued"' in lines[1]


def test_a_producer_that_failed_is_replaced(kafka_url: str) -> None:
    log: Any = KafkaLog(make_topics(kafka_url))
    with log:
        assert try_append(log, CONTROL, new(1)) == Ack(0, 1)
        first = log._producer._client

        async def broken(*_: Any, **__: Any) -> None:
            raise OutOfOrderSequenceNumber()

        first.send_batch = broken
        assert isinstance(try_append(log, CONTROL, new(2)), UnknownOutcome)
        assert try_append(log, CONTROL, new(3)) == Ack(1, 1)
        assert log._producer._client is not None and log._producer._client is not first


async def test_an_acknowledgement_that_was_lost_is_found_out_and_nothing_happens_twice(kafka_url: str) -> None:
    store = await _opened(kafka_url)
    log: Any = store.engine.log
    try:
        await store.enqueue_rollout("first")
        producer = log._producer._client
        send = producer.send_batch

        async def answerless(*args: Any, **options: Any) -> Any:
            sent = await send(*args, **options)
            await sent  # it is in the log, and the answer gets lost on its way
            producer.send_batch = send
            raise OutOfOrderSequenceNumber()

        producer.send_batch = answerless
        rollout = await asyncio.wait_for(store.enqueue_rollout("second"), 30)
        found = await store.query_rollouts()
        assert found.total == 2 and rollout.rollout_id in {one.rollout_id for one in found.items}
        claimed = [await store.dequeue_rollout("w"), await store.dequeue_rollout("w"), await store.dequeue_rollout("w")]
        assert [one is not None for one in claimed] == [True, True, False]
    finally:
        await asyncio.to_thread(store.close)


async def test_a_topic_with_a_small_limit_gets_smaller_batches_and_refuses_only_what_is_too_large(
    kafka_url: str,
) -> None:
    await asyncio.to_thread(make_topics, kafka_url)
    name = KafkaAddress.parse(kafka_url).topic(CONTROL)
    await asyncio.to_thread(apart, _limit(kafka_url, name, 300_000))
    report = await asyncio.to_thread(init, kafka_url)
    assert report["notices"] == [
        f"topic {name} takes batches of 300,000 bytes at most, and what is larger is refused; set max.message.bytes=8388608"
    ]
    store = await _opened(kafka_url)
    try:
        inputs = [random.Random(n).randbytes(30_000).hex() for n in range(24)]
        too_large = asyncio.ensure_future(store.enqueue_rollout(random.Random(99).randbytes(420_000).hex()))
        made = await asyncio.gather(*(store.enqueue_rollout(one) for one in inputs))
        assert [one.input for one in made] == inputs
        with pytest.raises(StorageError, match="takes no batch as large as this append .* max.message.bytes"):
            await too_large
        log: Any = store.engine.log
        appender = log._appender(CONTROL, 0)
        appender._batch_bytes = 900_000  # as where the limit was lowered after the log was opened
        await asyncio.gather(*(store.enqueue_rollout(one) for one in inputs))
        assert (await store.query_rollouts()).total == 48
    finally:
        await asyncio.to_thread(store.close)


async def _limit(url: str, name: str, limit: int) -> None:
    async with admin(KafkaAddress.parse(url).bootstrap) as client:
        settings = {"max.message.bytes": str(limit), "retention.ms": "-1"}
        await client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, settings)])
        shown = ""
        while shown != str(limit):
            (answer,) = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
            shown = {row[0]: row[1] for row in answer.resources[0][4]}["max.message.bytes"]  # pyright: ignore[reportAttributeAccessIssue]
            await asyncio.sleep(0.05)
