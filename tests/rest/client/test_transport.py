"""A call that is sent again under its id is given its first answer: over the batched calls and over the JSON routes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

import agentlightning as agl
from agentlightning.core.ids import uuid7_hex
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.api import encoding
from agentlightning.rest.api.routes import COMMAND_HEADER
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.client.transport import Connections, Transport
from agentlightning.rest.server.server import LightningStoreServer
from tests.projections.store.logs import HoldingLog
from tests.projections.store.tools import span, status_of


async def calls_of(store: agl.LightningStore) -> dict[str, dict[str, Any]]:
    """Every mutation that adds something, each with arguments that can be sent twice."""
    started = await store.start_rollout("begun")
    key = {"rollout_id": started.rollout_id, "attempt_id": started.attempt.attempt_id}
    for number in range(3):
        await store.enqueue_rollout(number)
    return {
        "dequeue_rollout": {"worker_id": "w"},
        "dequeue_many_rollouts": {"limit": 2},
        "start_rollout": {"input": 1},
        "enqueue_rollout": {"input": 2},
        "enqueue_many_rollouts": {"rollouts": [{"input": str(number) * 500_000} for number in range(3)]},
        "start_attempt": {"rollout_id": started.rollout_id},
        "add_span": {"span": span(started)},
        "add_many_spans": {"spans": [span(started), span(started)]},
        "update_rollout": {"rollout_id": started.rollout_id, "metadata": {"a": 1}},
        "update_attempt": {**key, "metadata": {"b": 1}},
        "add_resources": {"resources": {"p": agl.PromptTemplate(template="x", engine="f-string")}},
        "update_resources": {
            "resources_id": "rs", "resources": {"p": agl.PromptTemplate(template="y", engine="f-string")}
        },
    }  # fmt: skip


async def test_every_repeated_call_gets_its_first_answer(
    store: EventLogStore, client: LightningStoreClient, caplog: pytest.LogCaptureFixture
) -> None:
    transport: Transport = client.transport()
    await transport.hello()
    for name, args in (await calls_of(store)).items():
        frame = encoding.pack_call(uuid7_hex(), name, args, client._seen.basis)  # pyright: ignore[reportPrivateUsage]
        answers = [steady((await transport.post([frame]))[0]) for _ in range(3)]
        assert answers[0][0] == 200 and answers[0][1], name
        assert answers[0] == answers[1] == answers[2], name
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    statistics = await store.statistics()
    assert statistics.get("total_spans") == 3 and statistics.get("total_rollouts") == 9


async def test_every_repeated_json_call_gets_its_first_answer(
    store: EventLogStore, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    calls = await calls_of(store)
    key = calls["update_attempt"]
    paths = {
        "/v1/agl/queues/rollouts/dequeue": {"worker_id": "w"},
        "/v1/agl/queues/rollouts/enqueue": {"rollouts": [{"input": 1}, {"input": 2}]},
        "/v1/agl/rollouts": {"input": 1},
        "/start_rollout": {"input": 1},
        "/enqueue_rollout": {"input": 1},
        f"/v1/agl/rollouts/{key['rollout_id']}/attempts": {},
        f"/v1/agl/rollouts/{key['rollout_id']}/attempts/{key['attempt_id']}": {"metadata": {"a": 1}},
        f"/v1/agl/rollouts/{key['rollout_id']}": {"metadata": {"a": 1}},
        "/v1/agl/spans": encoding.from_json(encoding.to_json(calls["add_span"]["span"])),
        "/add_span": encoding.from_json(encoding.to_json(calls["add_many_spans"]["spans"][0])),
        "/v1/agl/resources": {"p": {"resource_type": "prompt_template", "template": "x", "engine": "f-string"}},
    }
    for path, body in paths.items():
        answers: list[tuple[int, Any]] = []
        headers = {COMMAND_HEADER: uuid7_hex()}
        for _ in range(3):
            async with http.post(path, json=body, headers=headers) as answer:
                answers.append((answer.status, steady(await answer.json())))
        assert answers[0][0] in (200, 201) and answers[0][1], (path, answers[0])
        assert answers[0] == answers[1] == answers[2], path
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def steady(answer: Any) -> Any:
    """Without the time of the last sign of life, which each call is one of."""
    if isinstance(answer, dict):
        return {name: steady(value) for name, value in answer.items() if name != "last_heartbeat_time"}
    return [steady(one) for one in answer] if isinstance(answer, list) else answer


class Held:
    """A served store whose claims are kept under way until they are let go."""

    def __init__(self) -> None:
        self.inner = MemoryLog()
        self.log = HoldingLog(self.inner)
        settings = StoreSettings(claim_confirm_seconds=0.3)
        self.store = EventLogStore(self.log, settings=settings)  # type: ignore[arg-type]
        self.server = LightningStoreServer(self.store, port=0)

    async def dequeue(self, key: str, wait_seconds: float = 0.0) -> list[dict[str, Any]]:
        async with aiohttp.ClientSession(self.server.endpoint) as http:
            body = {"wait_seconds": wait_seconds}
            async with http.post("/v1/agl/queues/rollouts/dequeue", json=body, headers={COMMAND_HEADER: key}) as answer:
                assert answer.status == 200
                return await answer.json()

    async def leave_in_the_middle(self, key: str) -> None:
        """A claim is in the log, and its caller goes before the answer."""
        self.log.holding = True
        calling = asyncio.ensure_future(self.dequeue(key, 30))
        await asyncio.to_thread(self.log.written.acquire)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        await asyncio.sleep(0.05)
        self.log.release()


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    made = Held()
    await made.server.start()
    yield made
    await made.server.stop()
    made.store.close()
    made.inner.close()


async def test_a_dequeue_that_comes_again_keeps_its_claim(held: Held) -> None:
    rollout = await held.store.enqueue_rollout("x")
    await held.leave_in_the_middle("key")
    (claimed,) = await held.dequeue("key")
    assert claimed["rollout_id"] == rollout.rollout_id and claimed["attempt"]["status"] == "preparing"
    await asyncio.sleep(0.5)  # longer than an unanswered claim is kept
    assert await held.store.dequeue_rollout() is None, "another worker does not get it too"
    assert await held.dequeue("key") == [claimed]


async def test_a_dequeue_that_comes_too_late_gets_no_dead_claim(held: Held) -> None:
    lost = await held.store.enqueue_rollout("x")
    await held.leave_in_the_middle("key")
    other = await held.store.dequeue_rollout(wait_seconds=5)
    assert other is not None and other.rollout_id == lost.rollout_id, "nobody came for it"
    assert await held.dequeue("key") == []
    later = await held.store.enqueue_rollout("y")
    (claimed,) = await held.dequeue("key")
    assert claimed["rollout_id"] == later.rollout_id and claimed["attempt"]["status"] == "preparing"
    assert await held.dequeue("key") == [claimed]
    assert await status_of(held.store, lost.rollout_id) == "preparing"


async def test_an_answer_that_nobody_asked_for_is_not_taken_for_that_of_the_next_request() -> None:
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        for number in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
            answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n%d%d" % (opened, number)
            writer.write(answer + (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstale" if opened == 1 else b""))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        connections = Connections(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", None, 5)
        answers = [(await connections.exchange(b"x", b"", 5)).body for _ in range(3)]
        connections.close()
    assert answers == [b"10", b"20", b"21"]


async def test_each_request_on_a_connection_has_its_own_time() -> None:
    """Also a short one after one that might have taken long, and a long one after a short one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
            await asyncio.sleep(float(body))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        connections = Connections(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", None, 5)
        assert (await connections.exchange(b"0", b"", 60)).body == b"ok"
        assert (await connections.exchange(b"0", b"", 0.1)).body == b"ok"
        assert (await connections.exchange(b"0.3", b"", 60)).body == b"ok", "the time of the request before was over"
        began = time.monotonic()
        with pytest.raises(asyncio.TimeoutError):
            await connections.exchange(b"30", b"", 0.1)
        assert time.monotonic() - began < 5
        connections.close()


async def test_the_last_answer_of_a_connection_is_an_answer() -> None:
    """A server that stops answers what is under way, and says that it closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        connections = Connections(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", None, 5)
        for _ in range(2):
            assert (await asyncio.wait_for(connections.exchange(b"x", b"", 60), 5)).body == b"ok"
        connections.close()
