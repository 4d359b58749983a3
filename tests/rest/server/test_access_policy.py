"""Who may send a request at all: host names, pages of other sites, heads that are not plain; on every path and door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest

from agentlightning.compat.server import AgentLightningServer
from agentlightning.compat.server_app import LegacyApp
from agentlightning.core.errors import CrossSite, ForeignHost, InvalidInput
from agentlightning.core.model.store_interface import LightningStore
from agentlightning.rest.api.routes import ROUTES
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.server.access_policy import AccessPolicy, is_loopback
from agentlightning.rest.server.server import LightningStoreServer

pytestmark = pytest.mark.parametrize("store", ["memory"], indirect=True)

CALLS = msgspec.msgpack.encode([["one", "enqueue_rollout", {"input": 1}, None]])
DOORS: list[tuple[str, str, bytes]] = [
    *((route.verb, route.path.replace("{", "").replace("}", ""), b"{}" if route.verb == "POST" else b"") for route in ROUTES),
    ("GET", "/health", b""), ("GET", "/v1/agl/health", b""), ("GET", "/v1/agl/openapi.json", b""),
    ("GET", "/v1/agl/events", b""), ("GET", "/v1/agl/log", b""), ("GET", "/v1/agl/log/control", b""),
    ("POST", "/v1/agl/calls", CALLS), ("POST", "/v1/traces", b"{}"),
    ("POST", "/v1/metrics", b""), ("GET", "/nowhere", b""),
    ("GET", "/task", b""), ("GET", "/resources/latest", b""), ("GET", "/resources/r", b""), ("POST", "/rollout", b"{}"),
    ("POST", "/heartbeat", b"[]"),
]  # fmt: skip


@pytest.fixture
async def port(store: LightningStore) -> AsyncIterator[int]:
    """Of the first generation's server, which serves the routes of both."""
    server = AgentLightningServer(port=0, store=store)
    await server.start()
    yield server.port
    await server.stop()


async def ask(
    port: int, verb: str, path: str, body: bytes = b"", *headers: str, version: str = "1.1"
) -> tuple[int, str]:
    """Status and everything that was answered. `headers` are whole lines; bytes beyond ASCII are latin-1."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{verb} {path} HTTP/{version}", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
    try:
        answer = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
    return int(answer.split(b" ")[1]), answer.decode("latin-1")


async def nothing_happened(store: Any) -> bool:
    return (await store.statistics())["total_rollouts"] == 0


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (421, ["Host: evil.example"]),
        (421, ["Host: 127.0.0.1.evil.example:4747"]),
        (421, ["Host: 192.0.2.7"]),
        (403, ["Host: localhost:4747", "Origin: https://evil.example"]),
        (403, ["Host: localhost:4747", "Origin: null"]),
        (403, ["Host: localhost:4747", "Origin: http://localhost:3000"]),
        (403, ["Host: 127.0.0.1", "Sec-Fetch-Site: cross-site"]),
        (403, ["Host: 127.0.0.1", "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"]),
        (400, []),
        (400, ["Host: localhost", "Host: localhost"]),
        (400, ["Host: "]),
        (400, ["Host: local host"]),
        (400, ["Host: localhost", "X-Note: a\x00b"]),
        (400, ["Host: localhost", "X-Note: caf\xe9"]),
        (400, ["Host: localhost", "X-N\xe9: 1"]),
        (400, ["Host: localhost", "X-Note: \x1b[31m"]),
    ],
)
async def test_what_may_not_come_in_is_refused_on_every_door(
    port: int, store: LightningStore, status: int, headers: list[str]
) -> None:
    answers = await asyncio.gather(*(ask(port, verb, path, body, *headers) for verb, path, body in DOORS))
    assert {door[:2]: found[0] for door, found in zip(DOORS, answers) if found[0] != status} == {}
    assert await nothing_happened(store)


async def test_programs_that_are_no_browsers_need_nothing(port: int) -> None:
    for host in (
        "localhost",
        "LOCALHOST:1",
        "localhost.",
        "127.0.0.1:4747",
        "127.8.9.1",
        "[::1]:4747",
        "agl.localhost",
    ):
        assert (await ask(port, "GET", "/dequeue_rollout", b"", f"Host: {host}"))[0] == 200
    own = ["Host: localhost:4747", "Origin: http://localhost:4747", "Sec-Fetch-Site: same-origin"]
    assert (await ask(port, "GET", "/v1/agl/health", b"", *own))[0] == 200
    assert (await ask(port, "GET", "/v1/agl/health", b"", "Host: localhost", "Sec-Fetch-Site: none"))[0] == 200


async def test_a_named_origin_may_call_and_read(store: LightningStore) -> None:
    server = LightningStoreServer(store, port=0, cors_allow_origins="https://dash.example/", token="t")
    await server.start()
    try:
        async with aiohttp.ClientSession(server.endpoint) as http:
            page = {"Origin": "https://dash.example", "Sec-Fetch-Site": "cross-site"}
            asking = {
                **page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true",
                "Access-Control-Request-Headers": "authorization,content-type",
            }  # fmt: skip
            for path in ("/v1/agl/rollouts", "/v1/agl/calls", "/v1/traces"):
                async with http.options(path, headers=asking) as answer:
                    assert answer.status == 204
                    assert answer.headers["Access-Control-Allow-Origin"] == "https://dash.example"
                    assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
                    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
                    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
                    assert answer.headers["Vary"] == "Origin"
            for headers, status in ((page, 401), ({**page, "Authorization": "Bearer t"}, 200)):
                async with http.get("/v1/agl/statistics", headers=headers) as answer:
                    assert answer.status == status
                    assert answer.headers["Access-Control-Allow-Origin"] == "https://dash.example"
            for headers in ({**asking, "Origin": "https://other.example"}, {"Origin": "http://dash.example"}):
                async with http.options("/v1/agl/rollouts", headers=headers) as answer:
                    assert answer.status == 403 and "Access-Control-Allow-Origin" not in answer.headers
                    assert "--cors-origin" in (await answer.json())["detail"]
    finally:
        await server.stop()


async def test_another_name_is_let_in_where_it_was_named_and_the_client_says_so(store: LightningStore) -> None:
    server = LightningStoreServer(store, port=0, allow_hosts=["Store.Example.com"])
    await server.start()
    try:
        port = int(server.endpoint.rpartition(":")[2])
        assert (await ask(port, "GET", "/health", b"", "Host: store.example.com:80"))[0] == 200
        assert (await ask(port, "GET", "/health", b"", "Host: example.com"))[0] == 421
        client = LightningStoreClient(server.endpoint)
        connections = client.transport()._connections  # pyright: ignore[reportPrivateUsage]
        connections._head = connections._head.replace(b"Host: 127.0.0.1", b"Host: elsewhere")  # what a proxy passes on
        with pytest.raises(ForeignHost, match="--allow-host elsewhere"):
            await client.health()
        await client.close()
    finally:
        await server.stop()


async def test_a_server_answers_under_the_address_that_it_gives_to_clients(
    store: LightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("server.access_host", "uvicorn_runner.access_host"):
        monkeypatch.setattr(f"agentlightning.rest.server.{name}", lambda host: "192.0.2.9")
    server = LightningStoreServer(store, host="0.0.0.0", port=0, token="t", allow_hosts=["store.example.com"])
    assert server.endpoint.startswith("http://192.0.2.9:")
    legacy = LegacyApp(store, host="0.0.0.0", token="t", allow_hosts=["store.example.com"]).store_app
    for door in (server.app, legacy):
        assert door._policy.admit(head(host="192.0.2.9:4747")) is None  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(ForeignHost):
            door._policy.admit(head(host="192.0.2.8:4747"))  # pyright: ignore[reportPrivateUsage]


def head(**fields: str) -> dict[str, Any]:
    return {"headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]}


def test_where_a_token_guards_more_than_this_machine_every_name_passes_unless_some_are_named(
    store: LightningStore,
) -> None:
    assert AccessPolicy("0.0.0.0").admit(head(host="store")) is None
    with pytest.raises(CrossSite):
        AccessPolicy("0.0.0.0").admit(head(host="store", origin="http://evil.example"))
    named = AccessPolicy("192.0.2.7", ["store"])
    for host in ("store:4747", "192.0.2.7:4747", "localhost"):
        assert named.admit(head(host=host)) is None
    with pytest.raises(ForeignHost):
        named.admit(head(host="other"))
    assert AccessPolicy("127.0.0.1", access_host="here.example").admit(head(host="here.example")) is None
    anybody = AccessPolicy("127.0.0.1", origins=["*"])
    assert anybody.admit(head(host="localhost", origin="https://any.example")) == b"https://any.example"
    assert b"access-control-allow-credentials" not in dict(anybody.answer_headers(b"https://any.example"))


def test_what_names_no_host_and_no_origin_is_refused_before_anything_is_served(store: LightningStore) -> None:
    for wrong in ("http://a.example", "a.example:80", "", "a b", "*"):
        with pytest.raises(InvalidInput, match="--allow-host"):
            AccessPolicy("127.0.0.1", [wrong])
    with pytest.raises(InvalidInput, match="https://"):
        AccessPolicy("127.0.0.1", origins="dash.example")
    assert not is_loopback("127.evil.example") and is_loopback("::1")
