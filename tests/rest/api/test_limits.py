"""What one request may cost: bodies counted before they are built, answers of a batch, deadlines, work that nobody wants."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agentlightning.core.errors import InvalidInput, PayloadTooLarge
from agentlightning.core.model.store_interface import LightningStore
from agentlightning.rest.api import encoding
from agentlightning.rest.client import remote_log
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.server import app, uvicorn_runner
from agentlightning.rest.server.server import LightningStoreServer
from agentlightning.rest.server.uvicorn_runner import _QuietServer  # pyright: ignore[reportPrivateUsage]

pytestmark = pytest.mark.parametrize("store", ["memory"], indirect=True)

SPAN = {
    "rollout_id": "r", "attempt_id": "a", "sequence_id": 0, "trace_id": "cd" * 16, "span_id": "ab" * 8, "parent_id": None,
    "name": "n", "status": {"status_code": "OK"}, "attributes": {}, "links": [], "start_time": 1.0, "end_time": 2.0,
    "context": None, "parent": None, "resource": {"attributes": {}, "schema_url": ""},
}  # fmt: skip


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the real ones."""
    for name in ("MAX_CONTAINERS", "MAX_ITEMS"):
        monkeypatch.setattr(encoding, name, getattr(encoding, name) // 100)
    monkeypatch.setattr(encoding, "MAX_RECORDS", 5_000)


def otlp(events: int) -> bytes:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    for _ in range(events):
        span.events.add()
    return request.SerializeToString()


def test_a_gzip_body_is_read_in_linear_time_whatever_its_members(store: LightningStore) -> None:
    text = bytes(300_000)
    assert encoding.gunzip(gzip.compress(text[:1]) * 4000 + gzip.compress(text), 400_000) == bytes(4000) + text
    many = zlib.compressobj(wbits=31).flush() * 50_000  # a million bytes of members that hold nothing
    began = time.perf_counter()
    with pytest.raises(InvalidInput, match="members"):
        encoding.gunzip(many, 1_000_000)
    assert time.perf_counter() - began < 5
    for wrong in (gzip.compress(text)[:-1], gzip.compress(text) + b"x", b"x"):
        with pytest.raises(InvalidInput):
            encoding.gunzip(wrong, 400_000)
    with pytest.raises(PayloadTooLarge):
        encoding.gunzip(gzip.compress(text), 299_999)


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (encoding.from_json, b"[" + b"[]," * 50_000 + b"[]]"),
        (encoding.from_json, b'{"input":[' + b"1," * 50_001 + b"1]}"),
        (encoding.unpack, b"\xdd" + (50_000).to_bytes(4, "big") + b"\x90" * 50_000),
        (encoding.unpack, b"\x91\xdd" + (50_001).to_bytes(4, "big") + b"\x01" * 50_001),
        (encoding.unwrap, b"[" + b"{}," * 6_000 + b"{}]"),
        (encoding.count_otlp, otlp(6_000)),
    ],
    ids=["lists", "numbers", "msgpack lists", "msgpack numbers", "json in msgpack", "otlp events"],
)
def test_a_dense_body_is_refused_before_its_parts_are_built(
    store: LightningStore, read: Callable[[bytes], Any], body: bytes, small_limits: None
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match="several requests"):
            read(body)
        assert tracemalloc.get_traced_memory()[1] < len(body) + 50_000
    finally:
        tracemalloc.stop()


def test_dense_parts_of_one_batch_are_counted_together(store: LightningStore, small_limits: None) -> None:
    part = b'{"input":[' + b"[]," * 1_000 + b"[]]}"
    assert app._unpacked(msgspec.msgpack.encode([["i", "enqueue_rollout", part, None]] * 4))  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(PayloadTooLarge):
        app._unpacked(msgspec.msgpack.encode([["i", "enqueue_rollout", part, None]] * 6))  # pyright: ignore[reportPrivateUsage]


def test_fields_that_nobody_knows_are_counted_too(store: LightningStore, small_limits: None) -> None:
    encoding.count_otlp(b"\x78\x01" * 50_000)
    with pytest.raises(PayloadTooLarge):
        encoding.count_otlp(b"\x78\x01" * 50_001)


async def test_an_answer_may_be_larger_than_a_request(
    client: LightningStoreClient, store: LightningStore, small_limits: None
) -> None:
    for start in range(0, 2_000, 500):
        await store.enqueue_many_rollouts([{"input": n} for n in range(start, start + 500)])  # pyright: ignore[reportArgumentType]
    assert len(await client.query_rollouts()) == 2_000
    await store.enqueue_rollout([2**70, *[[]] * 6_000])  # what travels as JSON text
    assert len((await client.query_rollouts())[-1].input) == 6_001


def test_what_only_looks_dense_is_read(store: LightningStore, small_limits: None) -> None:
    text = '{"a": [1, "\\", [' * 20_000
    assert encoding.from_json(json.dumps({"text": text}).encode()) == {"text": text}
    packed = msgspec.msgpack.encode(
        {"text": "\u00e4\u0100" * 30_000, "bytes": b"\x90" * 60_000, "n": [1.5, -7, 2**40, None]}
    )
    assert encoding.unpack(packed)["n"] == [1.5, -7, 2**40, None]
    numbers = [1.25] * 40_000
    assert encoding.unpack(msgspec.msgpack.encode(numbers)) == numbers


@pytest.mark.parametrize("events", [6_000, 30_000])
async def test_a_span_with_too_many_events_is_413_on_every_door(
    http: aiohttp.ClientSession, store: LightningStore, events: int, small_limits: None
) -> None:
    span = {**SPAN, "events": [{"name": "e", "attributes": {}, "timestamp": None}] * events}
    batch = msgspec.msgpack.encode([["i", "add_many_spans", {"spans": [span]}, None]])
    exported = {"Content-Type": "application/x-protobuf"}
    for path, options in (
        ("/v1/agl/spans", {"json": span}), ("/v1/agl/calls", {"data": batch}),
        ("/v1/traces", {"data": otlp(events), "headers": exported}),
    ):  # fmt: skip
        async with http.post(path, **options) as answer:
            data = await answer.read()
            if path == "/v1/agl/calls" and answer.status == 200:
                ((status, _),) = msgspec.msgpack.decode(data)
                assert status == 413
            else:
                assert answer.status == 413, data[:200]


async def test_many_wrong_values_are_one_sentence(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/agl/spans", json={**SPAN, "events": [{}] * 20_000}) as answer:
        body = await answer.read()
        assert answer.status == 422 and len(body) < 1000 and b"40,000 values" in body


async def batch(http: aiohttp.ClientSession, calls: list[Any]) -> list[Any]:
    async with http.post("/v1/agl/calls", data=msgspec.msgpack.encode(calls)) as answer:
        assert answer.status == 200, await answer.read()
        return msgspec.msgpack.decode(await answer.read())


async def test_the_answers_of_a_batch_are_bounded_and_what_was_not_run_can_be_sent_again(store: LightningStore) -> None:
    server = LightningStoreServer(store, port=0, max_payload_mb=1)
    await server.start()
    try:
        await store.enqueue_rollout("x" * 500_000)
        async with aiohttp.ClientSession(server.endpoint) as http:
            calls = [[f"q{n}", "query_rollouts", {}, None] for n in range(1000)]
            calls.insert(500, ["e", "enqueue_rollout", {"input": 1}, None])
            answers = await batch(http, calls)
        statuses = [status for status, _ in answers]
        assert statuses.count(200) in (4, 5) and statuses[500] == 200 and answers[500][1]["input"] == 1
        assert set(statuses) == {200, 503} and "send it again" in answers[-1][1]["detail"]
        assert answers[-1][1]["code"] == "store_unreachable"
    finally:
        await server.stop()


async def test_work_ends_when_its_caller_leaves(
    server: LightningStoreServer, store: LightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended = asyncio.Event(), asyncio.Event()
    here = asyncio.get_running_loop()

    async def slow(**_: Any) -> Any:
        here.call_soon_threadsafe(began.set)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            here.call_soon_threadsafe(ended.set)
            raise

    monkeypatch.setattr(store, "query_workers", slow)
    call = msgspec.msgpack.encode([["i", "query_workers", {}, None]] * 3)
    for request in (
        b"POST /v1/agl/calls HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(call), call),
        b"GET /v1/agl/workers HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ):
        began.clear()
        ended.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", int(server.endpoint.rpartition(":")[2]))
        writer.write(request)
        await asyncio.wait_for(began.wait(), 10)
        writer.close()
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_batch_that_waits_ends_when_the_server_stops(store: LightningStore) -> None:
    server = LightningStoreServer(store, port=0)
    await server.start()
    async with aiohttp.ClientSession(server.endpoint) as http:
        calls = [[f"d{n}", "dequeue_rollout", {"wait_seconds": 60}, None] for n in range(2)]
        waiting = asyncio.ensure_future(batch(http, calls))
        await asyncio.sleep(0.2)
        await asyncio.wait_for(server.stop(), 10)
        assert [status for status, _ in await waiting] == [503, 503]


@pytest.mark.parametrize("token", [None, "secret"])
async def test_a_request_that_does_not_arrive_loses_its_connection(
    store: LightningStore, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    for name in ("IDLE_SECONDS", "HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(uvicorn_runner, name, 0.2)
    server = LightningStoreServer(store, port=0, token=token)
    await server.start()
    try:
        port = int(server.endpoint.rpartition(":")[2])
        calls = b"POST /v1/agl/calls HTTP/1.1\r\nHost: localhost\r\n"
        rollouts = b"POST /v1/agl/rollouts HTTP/1.1\r\nHost: localhost\r\n"
        halves = [
            b"",
            b"GET /heal",
            calls,
            rollouts,
            *(head + b"Content-Length: 9\r\n\r\n{" for head in (calls, rollouts)),
        ]
        ends = await asyncio.gather(*(_until_closed(port, half) for half in halves))
        assert ends[0] == b""
        for end in ends[1:4]:
            assert end.startswith(b"HTTP/1.1 408 ") and b"in time" in end
        for end in ends[4:]:
            assert end.startswith(b"HTTP/1.1 408 " if token is None else b"HTTP/1.1 401 ")
    finally:
        await server.stop()


async def _until_closed(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_a_reader_that_reads_nothing_is_cut_off_with_a_sentence(
    store: LightningStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(uvicorn_runner, "UNREAD_SECONDS", 1.0)
    server = LightningStoreServer(store, port=0)
    await server.start()
    try:
        await store.enqueue_rollout("x" * 9_000_000)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.endpoint.rpartition(":")[2]), limit=1024)
        writer.write(b"GET /v1/agl/rollouts HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for _ in range(100):
            await asyncio.sleep(0.1)
            if "was cut off" in caplog.text:
                break
        assert "read nothing of its answer for 1 s and was cut off" in caplog.text
        writer.close()
        assert reader is not None
    finally:
        await server.stop()


def test_thousands_of_failed_accepts_are_one_line(store: LightningStore, caplog: pytest.LogCaptureFixture) -> None:
    import uvicorn

    server = _QuietServer(uvicorn.Config(lambda: None))
    loop = asyncio.new_event_loop()
    try:
        for _ in range(1000):
            server.loop_error(
                loop, {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many")}
            )
        assert [record.levelno for record in caplog.records] == [logging.ERROR] and "ulimit" in caplog.text
        server.loop_error(loop, {"message": "something else", "exception": ValueError("seen")})
        assert "something else" in caplog.text
        server.should_exit = True  # a second later asyncio tries again, on a listener that is closed
        lines = len(caplog.records)
        server.loop_error(loop, {"message": "Exception in callback X._start_serving()", "exception": ValueError("-1")})
        assert len(caplog.records) == lines
    finally:
        loop.close()


async def test_no_more_of_a_log_is_read_than_is_answered(
    http: aiohttp.ClientSession, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_log, "MOST_BYTES", 40_000)
    monkeypatch.setattr(remote_log, "STEP_RECORDS", 8)
    for number in range(40):
        await store.enqueue_rollout([number, "x" * 2_000])
    read, taken = store.engine.log.read, list[int]()

    def counting(*args: Any, **kwargs: Any) -> Any:
        found = read(*args, **kwargs)
        taken.append(len(found))
        return found

    monkeypatch.setattr(store.engine.log, "read", counting)
    async with http.get("/v1/agl/log/control", params={"offset": 1, "limit": 1000}) as answer:
        offsets = [one["offset"] for one in await answer.json()]
    assert offsets == list(range(1, len(offsets) + 1)) and 15 < len(offsets) < 20
    assert sum(taken) == 24
    for path, params in (("control", {"limit": "--5"}), ("control", {"offset": "9" * 30}), ("nothing", {})):
        async with http.get(f"/v1/agl/log/{path}", params=params) as answer:
            assert answer.status == 400 and "whole number" in await answer.text() or path == "nothing"
