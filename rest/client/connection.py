"""The client's end of a connection that carries batched calls only: one write a request, no general HTTP parser."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from ..api.routes import CALLS_PATH

IDLE_SECONDS = 30.0
"""Below the server's 75: a connection that was idle for longer may be closed from the other side at this moment."""
_HEAD_END = b"\r\n\r\n"
_LONGEST_HEAD = 65_536


class NotPlain(Exception):
    """The answer is no simple one (a proxy may be in between): take the general client."""


class Lost(ConnectionError):
    """The connection ended before the answer was complete. `unheard`: before its first byte."""

    def __init__(self, reason: str, *, unheard: bool) -> None:
        super().__init__(reason)
        self.unheard = unheard


@dataclass(slots=True)
class Answer:
    """A whole answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._future: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport | None = None
        self._head: tuple[int, dict[str, str], int, int] | None = None
        self._idle_since = time.monotonic()
        self._open = True

    @property
    def usable(self) -> bool:
        """Open, and not idle for so long that the server may just be closing it."""
        return self._open and time.monotonic() - self._idle_since < IDLE_SECONDS

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        # No isinstance: the transports of other event loops (uvloop) have the methods and none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._open = False
        self._fail(Lost(str(exc or "the connection was closed"), unheard=not self._buffer))

    async def request(self, data: bytes, timeout_seconds: float) -> Answer:
        """Send one request. Raises `Lost`, `NotPlain` and asyncio.TimeoutError, after which it is closed."""
        assert self._transport is not None
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._future = future
        self._transport.write(data)
        timer = self._loop.call_later(timeout_seconds, self._fail, asyncio.TimeoutError())
        try:
            return await future
        finally:
            timer.cancel()
            self._idle_since = time.monotonic()
            if not future.done() or future.cancelled() or future.exception() is not None:
                self.close()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        buffer = self._buffer
        buffer += data
        if self._head is None:
            end = buffer.find(_HEAD_END)
            if end < 0:
                if len(buffer) > _LONGEST_HEAD:
                    self._fail(NotPlain())
                return
            self._head = _parse(bytes(buffer[:end]), end + 4)
            if self._head is None:
                self._fail(NotPlain())
                return
        status, headers, start, length = self._head
        if len(buffer) < start + length:
            return
        answer = Answer(status, headers, bytes(buffer[start : start + length]))
        buffer.clear()
        self._head = None
        if headers.get("connection", "").lower() == "close":
            self.close()
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_result(answer)

    def _fail(self, error: BaseException) -> None:
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_exception(error)

    def close(self) -> None:
        """Close without waiting."""
        self._open = False
        if self._transport is not None:
            self._transport.close()


def _parse(head: bytes, start: int) -> tuple[int, dict[str, str], int, int] | None:
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ", 2)
    if len(parts) < 2 or parts[0] != "HTTP/1.1" or not parts[1].isdigit():
        return None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    length = headers.get("content-length", "")
    if not length.isdigit() or "transfer-encoding" in headers or int(parts[1]) < 200:
        return None
    return int(parts[1]), headers, start, int(length)


class Connections:
    """Connections to one address, opened when none is idle."""

    def __init__(self, base: str, token: str | None, connect_seconds: float) -> None:
        parts = urlsplit(base)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._connect_seconds = connect_seconds
        self._idle: list[Connection] = []
        lines = [
            f"POST {parts.path}{CALLS_PATH} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Content-Type: application/msgpack",
        ]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        self._head = "\r\n".join(lines).encode("latin-1") + b"\r\n"

    async def exchange(self, body: bytes, extra: bytes, timeout_seconds: float) -> Answer:
        """Send one request and read its answer. `extra`: header lines, each with its line end.

        A connection that turns out to be closed before a byte of an answer is replaced once: the server ended it
        while it was idle, and every call has an id that makes a repetition harmless. Raises as `Connection.request`.
        """
        data = b"%bContent-Length: %d\r\n%b\r\n%b" % (self._head, len(body), extra, body)
        while self._idle:
            connection = self._idle.pop()
            if not connection.usable:
                connection.close()
                continue
            try:
                return await self._on(connection, data, timeout_seconds)
            except Lost as error:
                if not error.unheard:
                    raise
                break
        return await self._on(await self._connect(), data, timeout_seconds)

    async def _on(self, connection: Connection, data: bytes, timeout_seconds: float) -> Answer:
        answer = await connection.request(data, timeout_seconds)
        if connection.usable:
            self._idle.append(connection)
        return answer

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        opening = loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        _, connection = await asyncio.wait_for(opening, self._connect_seconds)
        return connection

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop().close()
