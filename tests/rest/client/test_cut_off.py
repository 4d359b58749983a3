"""A node that is cut off from its log, or behind it, says so with 503: no 404 for what others made, no old state."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from agentlightning.compat.server_app import LegacyApp
from agentlightning.core.errors import StorageError, StoreUnreachable
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.liveness import node_gossip
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.server.server import LightningStoreServer
from agentlightning.rest.server.uvicorn_runner import Serving
from tests.projections.store.logs import HeldLog, HoldingLog
from tests.projections.store.tools import Unclosed

PATHS = ("/health", "/v1/agl/health", "/v1/agl/rollouts", "/v1/agl/rollouts/ro-of-another-node", "/v1/agl/statistics")


class CutLog(Unclosed):
    """A log whose broker does not say where it ends while `cut`."""

    cut = False

    def __init__(self, log: Any) -> None:
        super().__init__(log)
        self.unanswered: list[Callable[[Any], None]] = []
        self.closed = False

    def ask_end(self, topic: str, partition: int, done: Callable[[Any], None], at_least: int = 0) -> None:
        if self.cut:
            self.unanswered.append(done)
        else:
            self._log.ask_end(topic, partition, done, at_least)

    def heal(self) -> None:
        self.cut = False
        for done in self.unanswered:
            done(StorageError("the broker did not answer"))
        self.unanswered.clear()

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_gossip, "FRESH_SECONDS", 0.1)
    monkeypatch.setattr(node_gossip, "CUT_OFF_SECONDS", 0.4)


async def _statuses(endpoint: str) -> dict[str, int]:
    found: dict[str, int] = {}
    async with aiohttp.ClientSession() as session:
        for path in PATHS:
            async with session.get(endpoint + path) as answer:
                found[path] = answer.status
    return found


async def test_a_node_that_is_cut_off_fails_its_health_check_and_answers_503_until_it_is_not() -> None:
    log = CutLog(MemoryLog())
    store = EventLogStore(log, foreign_writers=True)  # pyright: ignore[reportArgumentType]
    server = LightningStoreServer(store, port=0)
    await server.start()
    client = LightningStoreClient(server.endpoint)
    try:
        well = {**dict.fromkeys(PATHS, 200), PATHS[3]: 404}
        assert await _statuses(server.endpoint) == well
        log.cut = True
        await asyncio.sleep(0.15)
        began = time.monotonic()
        assert await _statuses(server.endpoint) == dict.fromkeys(PATHS, 503)
        assert time.monotonic() - began < 2, "only the first one waits"
        async with aiohttp.ClientSession() as session, session.get(f"{server.endpoint}/health") as answer:
            assert "this node is cut off from its log at memory://" in (await answer.json())["detail"]
            assert answer.headers["Retry-After"] == "1"
        with pytest.raises(StoreUnreachable):
            await store.wait_current()
        waiting = asyncio.ensure_future(client.enqueue_rollout("rides it out"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        log.heal()
        assert (await asyncio.wait_for(waiting, 10)).input == "rides it out"
        assert await _statuses(server.endpoint) == well
    finally:
        await client.close()
        await server.stop()
        await store.end()


async def test_a_node_that_is_behind_its_log_says_so_instead_of_not_found() -> None:
    shared = MemoryLog()
    held = HeldLog(shared, CONTROL)
    store, other = EventLogStore(held, foreign_writers=True), EventLogStore(Unclosed(shared), foreign_writers=True)  # pyright: ignore[reportArgumentType]
    server = LightningStoreServer(store, port=0)
    await server.start()
    try:
        held.held = True
        rollout = await other.enqueue_rollout("of another node")
        await asyncio.sleep(0.15)
        async with aiohttp.ClientSession() as session:
            url = f"{server.endpoint}/v1/agl/rollouts/{rollout.rollout_id}"
            async with session.get(url) as answer:
                assert answer.status == 503
                assert "this node lags: 1 of the records in its log" in (await answer.json())["detail"]
            held.release()
            async with session.get(url) as answer:
                assert answer.status == 200
    finally:
        await server.stop()
        store.close()
        other.close()


async def test_the_door_of_the_first_protocol_says_so_too() -> None:
    log = CutLog(MemoryLog())
    store = EventLogStore(log, foreign_writers=True)  # pyright: ignore[reportArgumentType]
    door = LegacyApp(store)
    serving = Serving(door, "127.0.0.1", 0)
    await serving.start(in_thread=False)
    try:
        log.cut = True
        await asyncio.sleep(0.15)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{serving.port}/task") as answer:
                assert answer.status == 503
    finally:
        door.stop()
        await serving.stop()
        log.heal()
        store.close()


async def test_where_the_log_does_not_answer_it_is_closed_first_and_nothing_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agentlightning.projections.store.engine.ANSWER_SECONDS", 0.1)
    log = CutLog(MemoryLog())
    store = EventLogStore(log, foreign_writers=True)  # pyright: ignore[reportArgumentType]
    order: list[str] = []
    assert store.engine.cluster is not None
    monkeypatch.setattr(store.engine.cluster, "close", lambda finish: order.append(f"peers {finish} {log.closed}"))
    log.cut = True
    with caplog.at_level(logging.WARNING):
        await store.end()
    assert order == ["peers False True"]
    assert "does not answer; the store is closed without it" in caplog.text


async def test_a_call_that_is_under_way_when_the_server_stops_is_asked_to_come_again() -> None:
    log = HoldingLog(MemoryLog())
    store = EventLogStore(log)  # pyright: ignore[reportArgumentType]
    server = LightningStoreServer(store, port=0)
    await server.start()
    log.holding = True
    async with aiohttp.ClientSession() as session:
        asked = asyncio.ensure_future(session.post(f"{server.endpoint}/v1/agl/rollouts", json={"input": "x"}))
        await asyncio.to_thread(log.written.acquire)
        await server.stop()
        answer = await asked
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert (await answer.json())["detail"] == "the store is shutting down"
    log.release()
    store.close()
