"""What the server promises beyond its routes: tokens, limits, access lines, errors that stay inside."""

from __future__ import annotations

import asyncio
import logging
import pickle
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
import pytest

from agentlightning.core.errors import (
    HistoryChanged,
    InvalidInput,
    LogClosed,
    LogFull,
    NotFound,
    StorageError,
    Unauthorized,
    UnknownOutcome,
    UnsafeBind,
)
from agentlightning.core.model.span import Span
from agentlightning.core.model.store_interface import LightningStore
from agentlightning.rest.api.routes import METHODS
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.server.delegating_store import LightningStoreThreaded
from agentlightning.rest.server.server import LightningStoreServer, PythonServerLauncherArgs


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
    caplog.set_level(logging.DEBUG, "agentlightning.store.server")
    await client.update_worker("w")
    await asyncio.gather(*(client.enqueue_rollout(n) for n in range(5)))
    claimed = await client.dequeue_rollout("w")
    assert claimed is not None
    await client.add_span(_span(claimed))
    await client.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
    await client.wait_for_rollouts([claimed.rollout_id])
    await client.query_spans(claimed.rollout_id)
    lines = [record.getMessage() for record in caplog.records if record.name == "agentlightning.store.server.access"]
    assert sum('"POST /enqueue_rollout HTTP/1.1" 200 ' in line for line in lines) == 5
    for shown in (
        "GET /dequeue_rollout", "POST /add_span", "POST /update_attempt", "POST /wait_for_rollouts",
        f"GET /query_spans/{claimed.rollout_id}",
    ):  # fmt: skip
        assert any(f'"{shown} HTTP/1.1" 200 ' in line for line in lines), shown
    assert {record.levelno for record in caplog.records if '"' in record.getMessage()} == {logging.DEBUG}
    assert not any("update_worker" in line for line in lines) and "POST /update_worker" in caplog.text


EVIL = "x\r\nINFO forged\x1b[31m\u202e\x00"


async def test_no_line_holds_what_a_terminal_would_obey(
    http: aiohttp.ClientSession,
    store: LightningStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG, "agentlightning")
    call = ["i", "query_spans", {"rollout_id": EVIL}, None]
    await http.post("/v1/agl/calls", data=msgspec.msgpack.encode([call, call]))
    await http.get("/v1/agl/rollouts/" + quote(EVIL))
    await http.get("/nowhere/" + quote(EVIL))
    resource = {"attributes": [
        {"key": "agentlightning.rollout_id", "value": {"stringValue": EVIL}},
        {"key": "agentlightning.attempt_id", "value": {"stringValue": EVIL}},
    ]}  # fmt: skip
    spans = [{"spans": [{"name": EVIL, "traceId": "ab" * 16, "spanId": "ab" * 8}, {"name": EVIL, "traceId": EVIL}]}]
    for group in ({"resource": resource, "scopeSpans": spans}, {"scopeSpans": spans}):
        await http.post("/v1/traces", json={"resourceSpans": [group]})
    monkeypatch.setattr(store, "get_worker_by_id", _raise(ZeroDivisionError))
    await http.get("/v1/agl/workers/" + quote(EVIL))
    assert len(caplog.records) > 6
    assert [line for record in caplog.records if not (line := record.getMessage()).isprintable()] == []
    assert str(NotFound.rollout(EVIL)) == "Rollout x\\r INFO forged\\x1b[31m\\u202e\\x00 not found"


def _raise(kind: type[Exception], *args: Any) -> Any:
    async def broken(*_: Any, **__: Any) -> None:
        raise kind(*args)

    return broken


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StorageError("disk"), 503), (LogFull("full"), 507), (LogClosed("closed"), 503), (UnknownOutcome("?"), 503),
        (HistoryChanged("other"), 503),
    ],
)  # fmt: skip
async def test_a_known_error_of_storage_is_one_line_and_no_traceback(
    http: aiohttp.ClientSession, store: LightningStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    error: Exception, status: int,
) -> None:  # fmt: skip
    for name in ("enqueue_rollout", "query_workers", "start_rollout"):
        monkeypatch.setattr(store, name, _raise(type(error), str(error)))
    async with http.post("/v1/agl/rollouts", json={"input": 1}) as answer:
        assert answer.status == status
    async with http.get("/v1/agl/workers") as answer:
        assert answer.status == status and (await answer.json())["code"] == type(error).code  # type: ignore[attr-defined]
    call = msgspec.msgpack.encode([["i", "enqueue_rollout", {"input": 1}, None]])
    async with http.post("/v1/agl/calls", data=call) as answer:
        assert msgspec.msgpack.decode(await answer.read())[0][0] == status
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 3 and not any(record.exc_info for record in lines)
    assert all(str(error) in record.getMessage() for record in lines)


async def test_a_key_stands_for_one_call(http: aiohttp.ClientSession, store: LightningStore) -> None:
    key = {"Idempotency-Key": "k"}

    async def post(path: str, body: Any) -> tuple[int, Any]:
        async with http.post("/v1/agl" + path, json=body, headers=key) as answer:
            return answer.status, await answer.json()

    assert (await post("/rollouts", {"input": 1, "mode": "bogus"}))[0] == 422  # nothing happened: the key is free
    status, made = await post("/rollouts", {"input": 1})
    assert status == 201
    assert (await post("/rollouts", {"input": 1}))[1]["rollout_id"] == made["rollout_id"]
    for path, body in (
        ("/rollouts", {"input": 2}),
        ("/resources", {}),
        (f"/rollouts/{made['rollout_id']}", {"mode": "val"}),
    ):
        status, refused = await post(path, body)
        assert status == 409 and "key of its own" in refused["detail"], refused
        assert refused["fields"]["reason"] == "key_reused"
    assert (await post("/queues/rollouts/dequeue", {"limit": 1}))[0] == 409
    async with http.get("/v1/agl/rollouts", headers=key) as answer:
        assert answer.status == 200 and (await answer.json())["total"] == 1
    calls = [["k", "add_resources", {"resources": {}}, None], ["k2", "enqueue_rollout", {"input": 1}, None]]
    calls.append(["k2", "update_worker", {"worker_id": "w"}, None])
    async with http.post("/v1/agl/calls", data=msgspec.msgpack.encode(calls)) as answer:
        assert [status for status, _ in msgspec.msgpack.decode(await answer.read())] == [409, 200, 409]


@pytest.mark.parametrize("args", [
    [], [1], b"[1]", b"5", b"{", b"[" * 5000, "text", 5, None, {"status_in": 5}, {"sort_order": []}, {1: 2},
    {"rollout_id": {}}, {"limit": 1e300}, b'{"limit": 1e999}', b'{"limit": NaN}', b'{"rollout_id": "\\ud800"}',
])  # fmt: skip
async def test_arguments_that_are_none_are_the_callers_fault(http: aiohttp.ClientSession, args: Any) -> None:
    calls = [[f"i{n}", name, args, None] for n, name in enumerate(METHODS)]
    async with http.post("/v1/agl/calls", data=msgspec.msgpack.encode(calls)) as answer:
        statuses = [status for status, _ in msgspec.msgpack.decode(await answer.read())]
    assert [name for name, status in zip(METHODS, statuses) if status >= 500] == []


async def test_a_status_that_does_not_exist_is_refused_by_every_kind_of_store(
    store: LightningStore, client: LightningStoreClient, server: LightningStoreServer
) -> None:
    for one in (store, client, server):
        for query in (one.query_rollouts, one.query_workers):
            wrong: Any = ["success"]
            with pytest.raises(InvalidInput, match="status_in"):
                await query(status_in=wrong)


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
