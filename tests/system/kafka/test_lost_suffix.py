"""Decision 8 on a real broker: acknowledged records are gone after a power cut, and nobody goes on answering from them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kafka_local import Cluster

import agentlightning as agl
from agentlightning.core.errors import AgentLightningError, HistoryChanged
from agentlightning.projections.replica.command_context import Call, serve
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store

from .broker import NoBroker, open_cluster, refuse, remove
from .fixtures import random_prefix
from .test_kafka_log import make_topics

pytestmark = pytest.mark.kafka

KEPT = 10
"""Rollouts that survive the power cut."""
LOST = 15


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        stack.callback(remove, tmp_path / "broker")
        try:
            yield open_cluster(stack, tmp_path / "broker", brokers=1)
        except NoBroker as no:
            refuse([f"this one cuts a broker's files, so only deploy/kafka-local will do: {no}"])


def _opened(url: str) -> EventLogStore:
    store = open_store(url)
    assert isinstance(store, EventLogStore)
    return store


def cut(folder: Path, topic: str, offset: int) -> None:
    """Take everything from `offset` on out of a stopped broker's segment, as a disk that lost its cache does."""
    partition = folder / "data" / f"{topic}-0"
    segment = partition / "00000000000000000000.log"
    data = segment.read_bytes()
    at = 0
    while at < len(data):
        base, length = struct.unpack_from(">qi", data, at)
        if base >= offset:
            break
        at += 12 + length
    assert at < len(data), "nothing was cut"
    with segment.open("r+b") as file:
        file.truncate(at)
    for pattern in ("*.index", "*.timeindex", "*.snapshot"):
        for derived in partition.glob(pattern):
            derived.unlink()
    (folder / "data" / ".kafka_cleanshutdown").unlink(missing_ok=True)


@pytest.mark.parametrize("written", [5, 40], ids=["fewer than were lost", "more than were lost"])
async def test_08_nobody_answers_from_a_suffix_that_the_broker_lost(cluster: Cluster, written: int) -> None:
    prefix = random_prefix()
    url = f"kafka://{cluster.bootstrap}/{prefix}"
    await asyncio.to_thread(make_topics, url)
    first = await asyncio.to_thread(_opened, url)
    kept = [(await first.enqueue_rollout({"kept": n})).rollout_id for n in range(KEPT)]
    end = first.engine.node.next_offset
    for n in range(LOST):
        await first.enqueue_rollout({"lost": n})

    await asyncio.to_thread(cluster.kill, 1)
    cut(cluster.nodes[1].folder, f"{prefix}.control", end)
    await asyncio.to_thread(cluster.restart, 1)

    second = await asyncio.to_thread(_opened, url)
    try:
        assert {one.rollout_id for one in await second.query_rollouts()} == set(kept)
        new = [(await second.enqueue_rollout({"new": n})).rollout_id for n in range(written)]
        with pytest.raises(HistoryChanged, match="restart"):
            await _insist(first)
        with pytest.raises(HistoryChanged):
            await first.query_rollouts()
        await asyncio.to_thread(first.close)
        first = await asyncio.to_thread(_opened, url)  # as a supervisor does
        mine = await _insist(first)
        assert {one.rollout_id for one in await first.query_rollouts()} == {*kept, *new, mine}
        await second.wait_position(first.position())
        assert first.fingerprint() == second.fingerprint()
    finally:
        await asyncio.to_thread(first.close)
        await asyncio.to_thread(second.close)


async def _insist(store: agl.LightningStore) -> str:
    """Enqueue as a client does: again under the same id while the error says that it can succeed."""
    serve(Call("insisting" + "0" * 23, repeatable=True))
    for _ in range(600):
        try:
            return (await store.enqueue_rollout({"insisted": True})).rollout_id
        except AgentLightningError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(0.1)
    raise AssertionError("the node never answered")
