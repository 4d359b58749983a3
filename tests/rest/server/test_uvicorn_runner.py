"""The server's end of a connection: requests in pieces, pipelined, malformed and too large; the client's after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from agentlightning.core.model.store_interface import LightningStore
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.server.server import LightningStoreServer

pytestmark = pytest.mark.parametrize("store", ["memory"], indirect=True)

FIRST = b"POST /v1/agl/calls HTTP/1.1\r\n"


def request(number: int, *lines: bytes) -> bytes:
    body = msgspec.msgpack.encode([[f"id-{number}", "enqueue_rollout", {"input": number}, None]])
    head = [b"Host: localhost", b"Content-Length: %d" % len(body), *lines]
    return FIRST + b"\r\n".join(head) + b"\r\n\r\n" + body


class Raw:
    """A bare connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, bytes]:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)).decode().lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        return int(head.split()[1]), await self.reader.readexactly(length)


@pytest.fixture
async def raw(server: LightningStoreServer) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.endpoint.rpartition(":")[2]))
    yield Raw(reader, writer)
    writer.close()


def _inputs(body: bytes) -> list[object]:
    return [result["input"] for status, result in msgspec.msgpack.decode(body) if status == 200]


async def test_requests_may_arrive_in_pieces_and_several_at_once(raw: Raw) -> None:
    for byte in request(1):
        raw.writer.write(bytes([byte]))
        await raw.writer.drain()
    assert _inputs((await raw.answer())[1]) == [1]
    raw.writer.write(request(2) + request(3) + request(4)[:-5])
    assert _inputs((await raw.answer())[1]) == [2]
    assert _inputs((await raw.answer())[1]) == [3]
    raw.writer.write(request(4)[-5:])
    assert _inputs((await raw.answer())[1]) == [4]


async def test_requests_for_several_paths_share_a_connection(raw: Raw) -> None:
    raw.writer.write(request(1))
    assert (await raw.answer())[0] == 200
    raw.writer.write(b"GET /v1/agl/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert await raw.answer() == (200, b'{"status":"ok"}')
    raw.writer.write(request(2))
    assert _inputs((await raw.answer())[1]) == [2]


async def test_a_chunked_body_is_read(raw: Raw) -> None:
    body = msgspec.msgpack.encode([["c", "enqueue_rollout", {"input": 7}, None]])
    raw.writer.write(
        FIRST + b"Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    )
    assert _inputs((await raw.answer())[1]) == [7]


async def test_what_is_no_call_is_refused_and_the_connection_lives_on(raw: Raw) -> None:
    for body in (b"\xc1", b"\x90", msgspec.msgpack.encode({"a": 1})):
        raw.writer.write(FIRST + b"Host: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert (await raw.answer())[0] == 400
    calls = [["i", "rm", {}, None], ["i", "enqueue_rollout", 5, None], 7, ["i", "statistics", {}, "x:y"], [1, 2]]
    for call in calls:
        body = msgspec.msgpack.encode([call])
        raw.writer.write(FIRST + b"Host: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        status, answer = await raw.answer()
        assert status == 200 and msgspec.msgpack.decode(answer)[0][0] == 400, call


async def test_close_is_obeyed(raw: Raw) -> None:
    raw.writer.write(request(1, b"Connection: close"))
    assert (await raw.answer())[0] == 200
    assert await asyncio.wait_for(raw.reader.read(), 5) == b""


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 1\r\nContent-Length: 2", b"Content-Length: +1", b"Content-Length: 1_0",
        b"Transfer-Encoding: chunked\r\nContent-Length: 1", b"Content-Length : 1", b" folded: 1\r\nContent-Length: 1",
        b"Content-Length: 99999999999999999999999", b"a\nContent-Length: 1", b"a: \x00\r\nContent-Length: 1",
    ],
)  # fmt: skip
async def test_a_malformed_head_is_refused_and_ends_the_connection(raw: Raw, lines: bytes) -> None:
    raw.writer.write(FIRST + b"Host: localhost\r\n" + lines + b"\r\n\r\n" + b"0\r\n\r\n" + request(1))
    answer = await asyncio.wait_for(raw.reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1


async def test_a_head_without_an_end_is_refused(raw: Raw) -> None:
    raw.writer.write(FIRST)
    await asyncio.sleep(0.05)
    raw.writer.write(b"x: %b" % (b"x" * 33_000))
    assert b" 400 " in (await asyncio.wait_for(raw.reader.readuntil(b"\r\n"), 5))


async def test_requests_without_end_are_not_kept(raw: Raw) -> None:
    raw.writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1_000)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        for _ in range(1_000):
            await raw.answer()


async def test_a_connection_closed_while_idle_is_replaced_unseen(
    store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    server = LightningStoreServer(store, port=0)
    await server.start()
    port = int(server.endpoint.rpartition(":")[2])
    client = LightningStoreClient(server.endpoint, retry_delays=())
    await client.enqueue_rollout(1)
    await server.stop()
    again = LightningStoreServer(store, port=port)
    await again.start()
    assert (await client.enqueue_rollout(2)).input == 2
    assert not [record for record in caplog.records if record.name.endswith("client")]
    await client.close()
    await again.stop()
