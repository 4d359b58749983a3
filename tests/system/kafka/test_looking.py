"""`agl kafka init`, `agl log`, `agl show`, `agl replay` and `agl lag` on a real broker: as on a file, and making nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic

from agentlightning.core.log.interface import NewRecord
from agentlightning.core.log.kafka import KafkaLog
from agentlightning.core.log.log_copy import copy_log
from agentlightning.core.log.open_log import open_log
from agentlightning.core.log.topics import FACTS, TASKS, partition_of
from agentlightning.projections.facts.derived_topic import DerivedTopic
from agentlightning.projections.history.replay import replay
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store
from tests.cli.support import document, documents, fill, invoke, make_log

from .broker import Broker, admin

NAMES = ["control", "spans", "liveness", "blobs", "snapshots", "dead", "tasks", "facts"]


def put(log: Any, topic: str, partition: int, record: NewRecord, publish: bool = False) -> None:
    """Append one record and wait until it is there."""
    answered: list[Any] = []
    (log.publish if publish else log.append)(topic, partition, [record], answered.append)
    while not answered:
        asyncio.run(asyncio.sleep(0.01))
    assert type(answered[0]).__name__ == "Ack", answered


def publish_facts(url: str) -> int:
    """What a publisher does: every derived fact and task into the broker's topics; the number of facts."""
    log = KafkaLog(url)
    with log:
        count = 0
        for topic in (FACTS, TASKS):
            reader = DerivedTopic(log, topic)
            while found := reader.read():
                for one in found:
                    part = partition_of(one.key, log.partitions_published(topic))
                    put(log, topic, part, NewRecord(one.key, one.value, one.timestamp_us, one.headers), publish=True)
                    count += topic == FACTS
        return count


@pytest.fixture
def made(kafka_url: str) -> dict[str, Any]:
    """A log on the broker with what `fill` does."""
    document("kafka", "init", "--log", kafka_url, "--partitions", "spans=3", "--partitions", "facts=2")
    store: Any = open_store(kafka_url)
    try:
        return {"url": kafka_url, **asyncio.run(fill(store))}
    finally:
        store.close()


async def offsets(bootstrap: str, prefix: str) -> dict[str, Any]:
    """All that there is on the broker under a prefix: topics with their ends, and groups."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    async with admin(bootstrap) as client:
        names = sorted(name for name in await client.list_topics() if name.startswith(prefix))
        groups = sorted(row[0] for row in await client.list_consumer_groups() if row[0].startswith(prefix))
        described = await client.describe_topics(names)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        places = [TopicPartition(one["topic"], row["partition"]) for one in described for row in one["partitions"]]
        ends = await consumer.end_offsets(places)
    finally:
        await consumer.stop()
    return {"ends": {tuple(place): end for place, end in ends.items()}, "groups": groups}


def test_init_makes_what_is_missing_and_may_be_repeated(kafka_url: str) -> None:
    first = document("kafka", "init", "--log", kafka_url, "--partitions", "spans=5", "--replication", "1")
    assert [row["topic"] for row in first["topics"]] == NAMES
    assert all(row["made"] for row in first["topics"])
    assert {row["topic"]: row["partitions"] for row in first["topics"]}["spans"] == 5
    code, out = invoke("kafka", "init", "--log", kafka_url, "--partitions", "spans=32")
    assert code == 0 and "was there, not with 32 partitions" in out and out.count("was there") == len(NAMES)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cleanup.policy": "compact"}, "is compacted: it loses events"),
        ({"retention.ms": "60000"}, "forgets old events (retention.ms=60000); set retention.ms=-1"),
    ],
)
async def test_init_refuses_a_control_topic_that_loses_events(
    kafka_broker: Broker, kafka_prefix: str, kafka_url: str, settings: dict[str, str], words: str
) -> None:
    async with admin(kafka_broker.bootstrap) as client:
        await client.create_topics([NewTopic(f"{kafka_prefix}.control", 1, 1, topic_configs=settings)])
    code, out = await asyncio.to_thread(invoke, "kafka", "init", "--log", kafka_url)
    assert code == 1 and words in out and kafka_prefix in out


async def test_init_refuses_a_transactional_control_topic(
    kafka_broker: Broker, kafka_prefix: str, kafka_url: str
) -> None:
    await asyncio.to_thread(document, "kafka", "init", "--log", kafka_url)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_broker.bootstrap, transactional_id=kafka_prefix)
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(f"{kafka_prefix}.control", b"x", key=b"", partition=0)
    finally:
        await producer.stop()
    code, out = await asyncio.to_thread(invoke, "kafka", "init", "--log", kafka_url)
    assert code == 1 and "no record at offset 1 of partition 0: a transaction" in out
    report = (await asyncio.to_thread(invoke, "log", "check", "--json", "--log", kafka_url))[1]
    assert json.loads(report)["findings"] == ["control[0]: there is no record at offset 1"]


def test_a_prefix_without_topics_is_told_to_init(kafka_url: str) -> None:
    for command in (["log", "topics"], ["store", "--port", "0"], ["lag"], ["dead", "ls"], ["subscribe", "x:y", "--store"]):
        args = [*command, kafka_url] if command[-1] == "--store" else [*command, "--log", kafka_url]
        code, out = invoke(*args)
        if command[0] != "subscribe":
            assert code == 1 and f"`agl kafka init --log '{kafka_url}'` makes it" in out


def test_looking_makes_nothing_on_the_broker(kafka_broker: Broker, kafka_prefix: str, kafka_url: str) -> None:
    document("kafka", "init", "--log", kafka_url)
    before = asyncio.run(offsets(kafka_broker.bootstrap, kafka_prefix))
    assert sum(before["ends"].values()) == 0
    for args in (["log", "topics", "--log"], ["log", "tail", "--log"], ["log", "check", "--log"], ["replay"], ["lag", "--log"]):
        code, out = invoke(*args, kafka_url)
        assert code == 0, out
    with pytest.raises(Exception, match="reading only"):
        with open_log(kafka_url, readonly=True) as log:
            log.append("control", 0, [NewRecord("k", b"", 0)], print)
    assert asyncio.run(offsets(kafka_broker.bootstrap, kafka_prefix)) == before


def test_the_commands_say_the_same_as_on_a_file(made: dict[str, Any], tmp_path: Path) -> None:
    url, file = made["url"], str(tmp_path / "copy.db")
    document("log", "copy", url, file)
    for args in (
        ["log", "tail", "-n", "99"],
        ["log", "tail", "facts", "-n", "99"],
        ["log", "tail", "tasks"],
        ["log", "tail", "--type", "attempt.claimed", "--since", "2"],
        ["log", "show", "2"],
    ):
        assert without_log_id(documents(*args, "--log", url)) == without_log_id(documents(*args, "--log", file))
    assert document("show", made["rollout_id"], "--log", url) == document("show", made["rollout_id"], "--log", file)
    for found in (document("replay", url), document("replay", file), document("log", "check", "--log", url)):
        assert (found["position"], found["fingerprint"]) == (made["position"], made["fingerprint"])
    rows = {row["topic"]: row for row in document("log", "topics", "--log", url)}
    assert list(rows) == NAMES
    assert (rows["control"]["records"], rows["spans"]["records"], rows["spans"]["partitions"]) == (made["position"], 4, 3)
    code, out = invoke("log", "grep", "Say hi, try 1", "--log", url)
    assert code == 0 and len(out.splitlines()) == 1


def without_log_id(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A copy is a log of its own, which its facts name."""
    for one in found:
        one["body"].pop("log_id", None)
    return found


def test_tasks_and_facts_are_also_read_as_they_were_published(made: dict[str, Any]) -> None:
    url = made["url"]
    known = {one["id"] for one in published(url, "facts")}
    count = publish_facts(url)
    derived = documents("log", "tail", "facts", "-n", "999", "--log", url)
    found = published(url, "facts")
    assert {one["body"]["id"] for one in derived} <= known | {one["id"] for one in found}
    assert len(found) >= count == len(derived)
    rows = {row["topic"]: row for row in document("log", "topics", "--published", "--log", url)}
    assert (rows["facts"]["records"], rows["facts"]["partitions"]) == (len(found), 2)
    since = documents("log", "tail", "facts", "-n", "999", "--published", "--since", "3", "--until", "5", "--log", url)
    assert {one["position"] for one in since} <= {3, 4} and since
    code, out = invoke("log", "topics", "--published", "--log", "nowhere.db")
    assert code == 1, out


def published(url: str, topic: str) -> list[dict[str, Any]]:
    return [one["body"] for one in documents("log", "tail", topic, "-n", "999", "--published", "--log", url)]


def test_a_copy_from_file_to_kafka_and_back_has_the_same_fingerprint(kafka_url: str, tmp_path: Path) -> None:
    first = tmp_path / "first.db"
    made = make_log(first)
    document("kafka", "init", "--log", kafka_url, "--partitions", "spans=3", "--partitions", "blobs=2")
    there = document("log", "copy", str(first), kafka_url)
    back = document("log", "copy", kafka_url, str(tmp_path / "back.db"))
    assert there["records"] == back["records"]
    prints: list[tuple[int, str]] = []
    for address in (f"sqlite:///{first}", kafka_url, f"sqlite:///{tmp_path}/back.db"):
        with open_log(address, readonly=True) as log:
            met = replay(log)[1]
            prints.append((met.position, met.fingerprint))
    assert prints == [(made["position"], made["fingerprint"])] * 3
    assert {row["body"]["span_id"] for row in documents("log", "tail", "spans", "-n", "99", "--log", kafka_url)} == {
        row["body"]["span_id"] for row in documents("log", "tail", "spans", "-n", "99", "--log", str(first))
    }
    code, out = invoke("log", "copy", str(first), kafka_url)
    assert code == 1 and "into an empty one only" in out
    with open_log(kafka_url) as log, EventLogStore(log, foreign_writers=True) as store:
        assert store.fingerprint() == prints[0]


def test_a_copy_of_large_records_goes_in_appends_that_a_broker_takes(kafka_url: str, tmp_path: Path) -> None:
    with open_log(f"sqlite:///{tmp_path}/big.db") as log:
        for number in range(14):
            put(log, "spans", 0, NewRecord("ro-1", bytes([number]) * 890_000, 1))
        put(log, "blobs", 0, NewRecord("a" * 64, b"b" * 3_000_000, 1))
    document("kafka", "init", "--log", kafka_url)
    with open_log(f"sqlite:///{tmp_path}/big.db", readonly=True) as source, KafkaLog(kafka_url) as target:
        assert copy_log(source, target)["spans"] == 14
        records = target.read_key("spans", "ro-1")
        assert [record.value[0] for record in records] == list(range(14))


def test_lag_says_where_each_group_is(made: dict[str, Any]) -> None:
    url = made["url"]
    publish_facts(url)
    rows = {row["topic"]: row for row in document("log", "topics", "--published", "--log", url)}
    total, committed = rows["facts"]["records"], {0: 0, 1: 0}
    with KafkaLog(url) as log:
        member = log.join("mine", [FACTS], "member-1")
        for _ in range(2):
            for record in member.poll(3, 20.0):
                member.commit(FACTS, record.partition, record.offset + 1)
                committed[record.partition] = record.offset + 1
        report = document("lag", "--log", url, "--group", "mine")
        group = report["groups"][0]
        assert (group["group"], group["state"], group["members"]) == ("mine", "Stable", 1)
        assert [(place["topic"], place["partition"]) for place in group["partitions"]] == [("facts", 0), ("facts", 1)]
        assert {place["partition"]: place["committed"] or 0 for place in group["partitions"]} == committed
        assert group["lag"] == total - sum(committed.values()) == sum(place["lag"] for place in group["partitions"]) > 0
        assert all(place["member"].startswith("member-1") for place in group["partitions"])
        member.close()
    after = document("lag", "--store", url)
    mine = next(one for one in after["groups"] if one["group"] == "mine")
    assert (mine["state"], mine["members"]) == ("Empty", 0)
    with KafkaLog(url) as log:
        log.join("timekeeper", ["control"], "node")
        leaders = document("lag", "--log", url, "--group", "timekeeper")["groups"][0]
    assert (leaders["state"], leaders["lag"]) == ("Stable", 0) and leaders["partitions"][0]["end"] > 0
    code, out = invoke("lag", "--log", url, "--group", "nobody")
    assert code == 1 and "has no group 'nobody'; its groups are" in out
    code, out = invoke("lag", "--log", url)
    assert code == 0 and "facts[0]" in out


def test_lag_needs_a_kafka() -> None:
    code, out = invoke("lag", "--log", "sqlite:///x.db")
    assert code == 1 and "has no consumer groups" in out


async def test_a_store_on_kafka_is_subscribed_to_by_its_own_fold(kafka_url: str) -> None:
    await asyncio.to_thread(document, "kafka", "init", "--log", kafka_url)
    writer: Any = await asyncio.to_thread(open_store, kafka_url)
    reader: Any = await asyncio.to_thread(open_store, kafka_url)
    try:
        first = await writer.start_rollout("one", worker_id="w")
        await writer.update_attempt(first.rollout_id, first.attempt.attempt_id, status="succeeded")
        facts = reader.subscribe("rollout.completed", since=-1)
        found = await asyncio.wait_for(anext(facts), 20)
        assert (found.rollout_id, found.data["status"]) == (first.rollout_id, "succeeded")
        second = await writer.start_rollout("two", worker_id="w")
        await writer.update_attempt(second.rollout_id, second.attempt.attempt_id, status="failed")
        assert (await asyncio.wait_for(anext(facts), 20)).rollout_id == second.rollout_id
        resumed = reader.subscribe("rollout.completed", since=found.position)
        assert (await asyncio.wait_for(anext(resumed), 20)).rollout_id == second.rollout_id
        assert msgspec.json.encode(found.model_dump())
    finally:
        await asyncio.to_thread(writer.close)
        await asyncio.to_thread(reader.close)
