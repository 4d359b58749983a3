"""A log whose topics are not those that it was made with is not opened as an empty or a partial one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from agentlightning.cli.kafka import make_topics
from agentlightning.core.errors import InvalidInput, LogCorrupt
from agentlightning.core.log.kafka import KafkaAddress, KafkaLog, ReadOnlyKafkaLog
from agentlightning.core.log.kafka.log_identity import Identity, beginning, merged
from agentlightning.core.log.open_log import open_log
from agentlightning.core.log.topics import CONTROL, SPANS, partition_of
from agentlightning.projections.history.log_check import check_log
from tests.core.log.log_contract import append, new

from .broker import admin, apart


def _administer(url: str, work: Callable[[Any, str], Any]) -> None:
    address = KafkaAddress.parse(url)

    async def run() -> None:
        async with admin(address.bootstrap) as client:
            await work(client, address.prefix)

    apart(run())


def _write(url: str, topic: str, *records: tuple[str, bytes, int]) -> None:
    address = KafkaAddress.parse(url)

    async def run() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=address.bootstrap)
        await producer.start()
        for key, value, partition in records:
            await producer.send_and_wait(address.topic(topic), value, key=key.encode(), partition=partition)
        await producer.stop()

    apart(run())


def _refused(url: str) -> str:
    with pytest.raises(LogCorrupt) as refused:
        KafkaLog(url)
    return str(refused.value)


@pytest.fixture
def log_url(kafka_url: str) -> str:
    """A log with an event in it."""
    make_topics(kafka_url)
    with KafkaLog(kafka_url) as log:
        append(log, CONTROL, new(1), new(2), new(3))
    return kafka_url


async def _gone(client: Any, name: str) -> None:
    await client.delete_topics([name])
    while name in await client.list_topics():
        await asyncio.sleep(0.05)


def test_a_control_topic_that_was_deleted_is_not_made_again_nor_opened_once_it_was(log_url: str) -> None:
    name = f"{KafkaAddress.parse(log_url).prefix}.control"
    _administer(log_url, lambda client, _: _gone(client, name))
    with pytest.raises(LogCorrupt, match=f"{name} is gone"):
        make_topics(log_url)
    _administer(log_url, lambda client, _: client.create_topics([_topic(name, 1, {"retention.ms": "-1"})]))
    assert "is empty and had events: it was deleted and made again" in _refused(log_url)
    with pytest.raises(LogCorrupt, match="deleted and made again"):
        make_topics(log_url)
    with open_log(log_url, readonly=True) as log:
        report = check_log(log)
    assert not report.sound and "deleted and made again" in report.findings[0]
    _write(log_url, CONTROL, ("", b"another", 0))
    assert "begins with another event" in _refused(log_url)


def _topic(name: str, partitions: int, config: dict[str, str]) -> Any:
    return NewTopic(name, partitions, 1, topic_configs=config)


def test_events_that_were_removed_from_the_beginning_are_missed(log_url: str) -> None:
    async def remove(client: Any, prefix: str) -> None:
        await client.delete_records({TopicPartition(f"{prefix}.control", 0): RecordsToDelete(before_offset=2)})

    _administer(log_url, remove)
    assert "has no record at offset 0: records were compacted away, removed" in _refused(log_url)


def test_a_compacted_beginning_has_a_hole() -> None:
    def messages(*offsets: int) -> list[Any]:
        return [SimpleNamespace(offset=offset, key=b"", value=b"%d" % offset) for offset in offsets]

    assert beginning(messages(0, 1, 2), 3, None)[0] is None
    assert "no record at offset 0" in str(beginning(messages(2), 3, None)[0])
    assert "no record at offset 1" in str(beginning(messages(0, 2), 3, None)[0])


def test_added_partitions_stay_unused_and_one_that_was_used_is_found(log_url: str) -> None:
    keys = [f"ro-{number}" for number in range(12)]
    with KafkaLog(log_url) as log:
        for key in keys:
            append(log, SPANS, new(1, key=key), partition=partition_of(key, log.partitions(SPANS)))

    async def grow(client: Any, prefix: str) -> None:
        await client.create_partitions({f"{prefix}.spans": NewPartitions(16), f"{prefix}.control": NewPartitions(2)})

    _administer(log_url, grow)
    with KafkaLog(log_url) as log:
        assert (log.partitions(CONTROL), log.partitions(SPANS)) == (1, 8)
        assert all(len(log.read_key(SPANS, key)) == 1 for key in keys)
        assert any("the others stay unused" in notice for notice in log.notices)  # pyright: ignore[reportAttributeAccessIssue]
    make_topics(log_url)
    _write(log_url, CONTROL, ("", b"of a release that did not know", 1))
    assert "partitions that were added to it have records" in _refused(log_url)
    with ReadOnlyKafkaLog(log_url) as log:
        assert "partitions that were added" in log.findings[0]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("said", "remedy"), [("", "another prefix"), (',"format":3', "upgrade")])
def test_a_log_of_another_format_is_refused_and_left_alone(kafka_url: str, said: str, remedy: str) -> None:
    make_topics(kafka_url)
    _write(kafka_url, "meta", ("log", f'{{"log_id":"0123456789abcdef"{said}}}'.encode(), 0))
    _write(kafka_url, CONTROL, ("", b"\x86\xa2id", 0))
    for opened in (KafkaLog, ReadOnlyKafkaLog):
        with pytest.raises(InvalidInput, match=f"this release reads 2; .*{remedy}"):
            opened(kafka_url).close()


def test_a_log_without_partition_counts_is_taken_with_the_partitions_it_was_written_for(kafka_url: str) -> None:
    make_topics(kafka_url, {"spans": 4})
    meta = f"{KafkaAddress.parse(kafka_url).prefix}.meta"
    _administer(kafka_url, lambda client, _: _compacted(client, meta))
    _write(kafka_url, "meta", ("log", b'{"log_id":"0123456789abcdef","format":2}', 0))
    _write(kafka_url, SPANS, *((key, b"", partition_of(key, 2)) for key in map(str, range(12))))
    with KafkaLog(kafka_url) as log:
        assert log.log_id == "0123456789abcdef" and log.partitions(SPANS) == 2
        assert any("meta is compacted" in notice and "agl kafka init" in notice for notice in log.notices)  # pyright: ignore[reportAttributeAccessIssue]
        append(log, CONTROL, new(1))
    make_topics(kafka_url)
    with KafkaLog(kafka_url) as log:
        assert log.log_id == "0123456789abcdef" and log.partitions(SPANS) == 2
        assert not any("compacted" in notice for notice in log.notices)  # pyright: ignore[reportAttributeAccessIssue]


async def _compacted(client: Any, name: str) -> None:
    settings = {"cleanup.policy": "compact", "segment.bytes": "1048576"}
    await client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, settings)])
    while (await _settings(client, name))["cleanup.policy"] != "compact":
        await asyncio.sleep(0.05)


async def _settings(client: Any, name: str) -> dict[str, str]:
    (answer,) = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    return {row[0]: row[1] for row in answer.resources[0][4]}


def test_the_first_record_decides_which_log_it_is_and_later_ones_add_to_it() -> None:
    said = [
        Identity("a", partitions={"spans": 8}), Identity("b", partitions={"control": 3}),
        Identity("a", partitions={"spans": 16, "control": 1}, first={"0": "x"}), Identity("a", first={"0": "y", "1": "z"}),
    ]  # fmt: skip
    values = [b"no json", None, *map(msgspec.json.encode, said)]
    assert merged(values) == Identity("a", 1, {"spans": 8, "control": 1}, {"0": "x", "1": "z"})
    assert merged([b"no json"]) is None


def test_a_compacted_meta_is_kept_from_now_on_and_keeps_its_other_settings(kafka_url: str) -> None:
    make_topics(kafka_url)
    name = f"{KafkaAddress.parse(kafka_url).prefix}.meta"
    _administer(kafka_url, lambda client, _: _compacted(client, name))
    make_topics(kafka_url)

    async def look(client: Any, _: str) -> None:
        rows = await _settings(client, name)
        assert (rows["cleanup.policy"], rows["segment.bytes"]) == ("delete", "1048576")

    _administer(kafka_url, look)
