"""Spans on several nodes: whoever sees a completion reads all of them, however far a node's copy of the spans lags."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from agentlightning.core.kafka_log.mirror import Mirror
from agentlightning.core.log import Record
from agentlightning.projections.store import EventLogStore, open_store
from tests.store.tools import span

from .test_kafka_log import make_topics

SPANS = 300


async def _opened(url: str) -> EventLogStore:
    store: Any = await asyncio.to_thread(open_store, url)
    return store


async def test_spans_before_completion_with_an_index_that_lags_two_seconds(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Mirror._keep

    def late(mirror: Mirror, batches: Mapping[int, Sequence[Record]], positions: Mapping[int, int]) -> None:
        if mirror.topic == "spans":
            time.sleep(2.0)
        keep(mirror, batches, positions)

    await asyncio.to_thread(make_topics, kafka_url)
    writer, reader = await _opened(kafka_url), await _opened(kafka_url)
    try:
        started = await writer.start_rollout({"question": 1})
        facts = reader.subscribe("rollout.completed", since=-1)
        await writer.add_many_spans([span(started) for _ in range(SPANS)])
        monkeypatch.setattr(Mirror, "_keep", late)
        await writer.update_attempt(started.rollout_id, started.attempt.attempt_id, status="succeeded")
        fact = await asyncio.wait_for(anext(facts), 10)
        assert fact.rollout_id == started.rollout_id
        began = time.monotonic()
        found = await reader.query_spans(started.rollout_id)
        assert found.total == SPANS, f"only {found.total} spans at the completion"
        assert sorted(one.sequence_id for one in found.items) == list(range(1, SPANS + 1))
        assert time.monotonic() - began > 1.0, "the reader's copy did not lag, so nothing was shown"
    finally:
        monkeypatch.undo()
        await asyncio.to_thread(writer.close)
        await asyncio.to_thread(reader.close)


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
