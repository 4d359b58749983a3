"""What the server promises beyond its routes: tokens, limits, access lines, errors that stay inside."""

from __future__ import annotations

import asyncio
import logging
import pickle
from typing import Any

import aiohttp
import pytest

from agentlightning.core.contract import LightningStore
from agentlightning.core.errors import InvalidInput, Unauthorized, UnsafeBind
from agentlightning.core.spans import Span
from agentlightning.projections.rest.client import LightningStoreClient
from agentlightning.projections.rest.server import LightningStoreServer, PythonServerLauncherArgs
from agentlightning.projections.rest.threaded import LightningStoreThreaded


async def test_every_route_asks_for_the_token(store: LightningStore) -> None:
    server = LightningStoreServer(store, port=0, token="secret")
    await server.start()
    try:
        async with aiohttp.ClientSession(server.endpoint) as http:
            for verb, path in (
                ("GET", "/health"), ("GET", "/v1/agl/health"), ("GET", "/v1/agl/statistics"), ("POST", "/v1/agl/calls"),
                ("GET", "/v1/agl/events"), ("GET", "/v1/agl/openapi.json"), ("POST", "/v1/traces"), ("GET", "/nowhere"),
            ):  # fmt: skip
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
                    async with http.request(verb, path, headers=headers) as answer:
                        assert answer.status == 401, path
        wrong = LightningStoreClient(server.endpoint, token="wrong")
        for call in (wrong.dequeue_rollout(), wrong.get_rollout_by_id("x"), wrong.enqueue_rollout(1)):
            with pytest.raises(Unauthorized):
                await asyncio.wait_for(call, 5)
        await wrong.close()
        right = LightningStoreClient(server.endpoint, token="secret")
        assert (await right.enqueue_rollout(1)).input == 1
        await right.close()
    finally:
        await server.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_serving_beyond_this_machine_needs_a_token(store: LightningStore, host: str) -> None:
    with pytest.raises(UnsafeBind, match="token"):
        LightningStoreServer(store, host=host, port=0)
    LightningStoreServer(store, host=host, port=0, token="t")


async def test_a_taken_port_is_named(server: LightningStoreServer, store: LightningStore) -> None:
    port = int(server.endpoint.rpartition(":")[2])
    other = LightningStoreServer(store, port=port)
    with pytest.raises(RuntimeError, match=str(port)):
        await other.start()


def test_arguments_that_contradict_each_other_are_refused(store: LightningStore) -> None:
    with pytest.raises(ValueError, match="launcher_args"):
        LightningStoreServer(store, port=1, launcher_args=PythonServerLauncherArgs())
    with pytest.raises(ValueError, match="mp"):
        LightningStoreServer(store, port=0, launch_mode="mp")
    address: Any = "memory://"
    with pytest.raises(ValueError, match="open_store"):
        LightningStoreServer(address, port=0)
    wrong: Any = "process"
    with pytest.raises(ValueError, match="launch_mode is one of asyncio, thread, mp, not 'process'"):
        LightningStoreServer(store, port=0, launch_mode=wrong)
    with pytest.raises(ValueError, match="async_safe"):
        LightningStoreServer(LightningStore(), port=0)


async def test_the_access_log_shows_a_line_for_each_call_as_the_tutorial_prints_it(
    client: LightningStoreClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agentlightning.store.server")
    await asyncio.gather(*(client.enqueue_rollout(n) for n in range(5)))
    claimed = await client.dequeue_rollout("w")
    assert claimed is not None
    await client.add_span(_span(claimed))
    await client.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
    await client.wait_for_rollouts([claimed.rollout_id])
    await client.query_spans(claimed.rollout_id)
    lines = [record.getMessage() for record in caplog.records if record.name == "agentlightning.store.server"]
    assert sum('"POST /enqueue_rollout HTTP/1.1" 200 ' in line for line in lines) == 5
    for shown in (
        "GET /dequeue_rollout", "POST /add_span", "POST /update_attempt", "POST /wait_for_rollouts",
        f"GET /query_spans/{claimed.rollout_id}",
    ):  # fmt: skip
        assert any(f'"{shown} HTTP/1.1" 200 ' in line for line in lines), shown
    assert all(record.levelno == logging.INFO for record in caplog.records if '"' in record.getMessage())


def _span(claimed: Any, **options: Any) -> Span:
    ids = {"rollout_id": claimed.rollout_id, "attempt_id": claimed.attempt.attempt_id}
    return Span.from_attributes(attributes={"a": 1}, **ids, **options)


async def test_a_body_above_the_limit_is_refused_with_the_limit(store: LightningStore) -> None:
    server = LightningStoreServer(store, port=0, max_payload_mb=0.1)
    await server.start()
    client = LightningStoreClient(server.endpoint)
    try:
        with pytest.raises(ValueError, match="limit"):
            await client.enqueue_rollout("x" * 300_000)
        async with aiohttp.ClientSession(server.endpoint) as http:
            async with http.post("/v1/agl/rollouts", json={"input": "x" * 300_000}) as answer:
                assert answer.status == 413
        assert (await client.statistics()).get("total_rollouts") == 0
    finally:
        await client.close()
        await server.stop()


async def test_an_unexpected_exception_stays_on_the_server(
    server: LightningStoreServer,
    store: LightningStore,
    client: LightningStoreClient,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(store, "get_worker_by_id", broken)
    async with aiohttp.ClientSession(server.endpoint) as http:
        async with http.get("/v1/agl/workers/w") as answer:
            assert answer.status == 500
            assert await answer.json() == {"detail": "Internal server error", "error_type": "ZeroDivisionError"}
    with pytest.raises(Exception, match="ZeroDivisionError") as caught:
        await client.get_worker_by_id("w")
    assert "secret" not in str(caught.value)
    assert any(record.exc_info and "secret detail" in str(record.exc_info[1]) for record in caplog.records)


async def test_a_client_drops_a_position_of_another_log_and_says_so_once(
    server: LightningStoreServer, client: LightningStoreClient, caplog: pytest.LogCaptureFixture
) -> None:
    await client.enqueue_rollout(1)
    token = client.position()
    assert token is not None
    client._seen.token = "other" + token  # pyright: ignore[reportPrivateUsage]
    found = await asyncio.wait_for(asyncio.gather(*(client.query_rollouts() for _ in range(8))), 5)
    assert [len(one) for one in found] == [1] * 8 and client.position() == token
    assert sum("another history" in record.getMessage() for record in caplog.records) == 1


async def test_a_pickled_server_is_a_client_of_it(server: LightningStoreServer) -> None:
    made = await server.enqueue_rollout("here")
    copy = pickle.loads(pickle.dumps(server))
    assert copy.app is None and copy.store is None and copy.endpoint == server.endpoint
    found = await copy.get_rollout_by_id(made.rollout_id)
    assert found is not None and found.input == "here"
    await copy._client.close()


async def test_a_store_that_is_not_thread_safe_is_used_by_one_at_a_time() -> None:
    running = most = 0

    class Foreign(LightningStore):
        async def enqueue_rollout(self, *_: Any, **__: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            return "done"

        async def query_workers(self, **options: Any) -> Any:
            return options

        def otlp_traces_endpoint(self) -> str:
            return "here"

    threaded = LightningStoreThreaded(Foreign())
    assert await asyncio.gather(*(threaded.enqueue_rollout(n) for n in range(5))) == ["done"] * 5
    assert most == 1
    assert await threaded.query_workers(filter_logic="or") == {"filter_logic": "or"}
    assert threaded.otlp_traces_endpoint() == "here"
    with pytest.raises(InvalidInput):
        LightningStoreServer(Foreign(), port=0)
