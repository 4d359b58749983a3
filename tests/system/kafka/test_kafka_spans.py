"""Spans on a broker: no node copies their topic, and each question finds all that were acknowledged, whoever wrote them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from agentlightning.core.errors import AgentLightningError
from agentlightning.core.log.interface import KeyRange, NewRecord
from agentlightning.core.log.kafka import KafkaLog, offset_index
from agentlightning.core.log.kafka.address import KafkaAddress
from agentlightning.core.log.kafka.aiokafka_api import NewTopic
from agentlightning.core.log.kafka.offset_index import CLOCK_MARGIN_US, _PieceReader
from agentlightning.core.log.kafka.topic_setup import create
from agentlightning.core.log.topics import SPANS as SPANS_TOPIC
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store
from tests.core.log.log_contract import append, values
from tests.projections.store.tools import span

from .broker import admin
from .test_kafka_log import make_topics

SPANS = 300


async def _opened(url: str) -> EventLogStore:
    store: Any = await asyncio.to_thread(open_store, url)
    return store


class Reads:
    """Counts the records of spans that come from the broker."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.records = 0
        read = _PieceReader._try

        async def counted(reader: _PieceReader, position: int, end: int) -> tuple[list[Any], int]:
            messages, reached = await read(reader, position, end)
            self.records += len(messages)
            return messages, reached

        patch.setattr(_PieceReader, "_try", counted)

    def take(self) -> int:
        taken, self.records = self.records, 0
        return taken


async def test_spans_before_completion_where_reading_takes_a_second(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = _PieceReader._try

    async def late(reader: _PieceReader, position: int, end: int) -> tuple[list[Any], int]:
        await asyncio.sleep(1.0)
        return await read(reader, position, end)

    await asyncio.to_thread(make_topics, kafka_url)
    writer, reader = await _opened(kafka_url), await _opened(kafka_url)
    try:
        started = await writer.start_rollout({"question": 1})
        facts = reader.subscribe("rollout.completed", since=-1)
        await writer.add_many_spans([span(started) for _ in range(SPANS)])
        monkeypatch.setattr(_PieceReader, "_try", late)
        await writer.update_attempt(started.rollout_id, started.attempt.attempt_id, status="succeeded")
        fact = await asyncio.wait_for(anext(facts), 10)
        assert fact.rollout_id == started.rollout_id
        began = time.monotonic()
        found = await reader.query_spans(started.rollout_id)
        assert found.total == SPANS, f"only {found.total} spans at the completion"
        assert sorted(one.sequence_id for one in found.items) == list(range(1, SPANS + 1))
        assert time.monotonic() - began > 0.9, "the reader did not read from the broker, so nothing was shown"
    finally:
        monkeypatch.undo()
        await asyncio.to_thread(writer.close)
        await asyncio.to_thread(reader.close)


async def test_a_node_reads_no_spans_but_those_between_a_claim_and_its_own(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of spans of other rollouts lie in each partition; a node that opens after them leaves them there."""
    await asyncio.to_thread(make_topics, kafka_url, 1)
    before = await _opened(kafka_url)
    started = await before.start_rollout("old")
    await before.add_many_spans([span(started) for _ in range(3_000)])
    await before.update_attempt(started.rollout_id, started.attempt.attempt_id, status="succeeded")
    reads = Reads(monkeypatch)
    node = await _opened(kafka_url)
    try:
        own = await node.start_rollout("new")
        assert [(await node.add_span(span(own))).sequence_id for _ in range(3)] == [1, 2, 3]  # pyright: ignore[reportOptionalMemberAccess]
        assert reads.take() == 0, "its own spans were read back, or older ones"
        await before.wait_position(node.position())
        assert (await before.add_span(span(own))).sequence_id == 4  # pyright: ignore[reportOptionalMemberAccess]
        assert reads.take() == 3, "the other node needs those before its own"
        assert (await node.add_span(span(own))).sequence_id == 5  # pyright: ignore[reportOptionalMemberAccess]
        assert reads.take() == 1
        assert (await node.query_spans(started.rollout_id)).total == 3_000
        assert reads.take() >= 3_000
        assert (await node.query_spans(own.rollout_id)).total == 5
        assert reads.take() == 0
        assert not [one.name for one in node.engine.log.state_folder.iterdir() if "spans" in one.name], "a copy on the disk"  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        await asyncio.to_thread(before.close)
        await asyncio.to_thread(node.close)


HOURS = 400


def _hourly(log: KafkaLog) -> list[int]:
    """One record an hour, of one of ten keys in turn; returns the times."""
    times = [1_700_000_000_000_000 + hour * 3_600_000_000 for hour in range(HOURS)]
    records = [NewRecord(f"ro-{hour % 10}", b"%d" % hour, at) for hour, at in enumerate(times)]
    append(log, SPANS_TOPIC, *records)
    return times


def test_a_key_whose_time_is_known_is_found_by_reading_that_time_only(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = make_topics(kafka_url, 1)
    with KafkaLog(address) as log:
        times = _hourly(log)  # pyright: ignore[reportArgumentType]
    reads = Reads(monkeypatch)
    opened: Any = KafkaLog(address)
    with opened as log:
        assert CLOCK_MARGIN_US < 3_600_000_000
        within = KeyRange(end=105, since_us=times[101], until_us=times[125])
        assert values(log.read_key(SPANS_TOPIC, "ro-3", within=within)) == [b"103", b"113", b"123"]
        assert reads.take() == 25
        log._keyed[SPANS_TOPIC, 0]._recent.clear()
        assert values(log.read_key(SPANS_TOPIC, "ro-4", within=within)) == [b"104", b"114", b"124"]
        assert reads.take() == 21, "where the records of other keys are was seen already"
        # Times that are of no use, as where a log was copied: everything is looked at before a rollout has no spans.
        wrong = KeyRange(end=2, since_us=times[-1] + 10**13, until_us=times[-1] + 10**13)
        assert len(log.read_key(SPANS_TOPIC, "ro-5", within=wrong)) == HOURS // 10
        for _ in range(3):
            assert values(log.read_key(SPANS_TOPIC, "ro-3")) == [b"%d" % hour for hour in range(3, HOURS, 10)]
            reads.take()
            monkeypatch.setattr(offset_index, "MOST_OFFSETS", 50)  # from now on all is forgotten and read again
        assert values(log.read_key(SPANS_TOPIC, "ro-3")) and reads.take() == HOURS


def test_a_topic_with_the_time_of_the_broker_is_read_whole(kafka_url: str) -> None:
    async def with_the_time_of_the_broker() -> None:
        address = KafkaAddress.parse(kafka_url)
        setting = {"message.timestamp.type": "LogAppendTime"}
        async with admin(address.bootstrap) as client:
            await client.create_topics([NewTopic(address.topic(SPANS_TOPIC), 1, 1, topic_configs=setting)])

    asyncio.run(with_the_time_of_the_broker())
    address = make_topics(kafka_url, 1)
    with KafkaLog(address) as log:
        times = _hourly(log)  # pyright: ignore[reportArgumentType]
    with KafkaLog(address) as log:
        now_us = int(time.time() * 1e6)
        within = KeyRange(end=HOURS, since_us=times[0], until_us=now_us)
        assert len(log.read_key(SPANS_TOPIC, "ro-3", within=within)) == HOURS // 10


async def test_spans_go_on_where_their_topic_is_deleted_and_made_again_under_a_node(kafka_url: str) -> None:
    address = await asyncio.to_thread(make_topics, kafka_url, 1)
    node = await _opened(kafka_url)
    try:
        started = await node.start_rollout("a")
        await node.add_many_spans([span(started) for _ in range(20)])
        await node.update_attempt(started.rollout_id, started.attempt.attempt_id, status="succeeded")
        async with admin(address.bootstrap) as client:
            await client.delete_topics([address.topic(SPANS_TOPIC)])
        await asyncio.to_thread(_again, address)
        for number in (1, 2):
            stored = await asyncio.wait_for(node.add_span(span(started)), 60)
            assert stored is not None and stored.sequence_id == number
        assert await asyncio.to_thread(node.engine.log.ends, SPANS_TOPIC, 0) == (0, 2), "a try left a copy behind"
        found = await node.query_spans(started.rollout_id)
        assert found.total == 2 and getattr(found, "incomplete", False)
    finally:
        await asyncio.to_thread(node.close)


def _again(address: KafkaAddress) -> None:
    """Make the topic that was deleted, as soon as the broker has got rid of it."""
    for _ in range(200):
        try:
            if asyncio.run(create(address, {SPANS_TOPIC: 1})):
                return
        except AgentLightningError:
            pass
        time.sleep(0.05)
    raise AssertionError("the topic was not made")


async def test_24_two_nodes_number_the_spans_of_a_rollout_in_the_order_of_their_acknowledgements(kafka_url: str) -> None:
    await asyncio.to_thread(make_topics, kafka_url)
    nodes = [await _opened(kafka_url), await _opened(kafka_url)]
    try:
        started = await nodes[0].start_rollout({"question": 1})
        await nodes[1].wait_position(nodes[0].position())
        numbers: list[int] = []
        for turn in range(20):
            node = nodes[turn % 2]
            if turn % 5 == 4:
                numbers.append(await node.get_next_span_sequence_id(started.rollout_id, started.attempt.attempt_id))
            else:
                stored = await node.add_span(span(started))
                assert stored is not None
                numbers.append(stored.sequence_id)
        assert numbers == list(range(1, 21))
        first, second = [await node.query_spans(started.rollout_id) for node in nodes]
        assert [one.sequence_id for one in first.items] == [one.sequence_id for one in second.items]
    finally:
        for node in nodes:
            await asyncio.to_thread(node.close)
