"""A short cut through uvicorn for batched calls: connections that carry nothing else skip the general HTTP parser.

Parsing one request in pure Python costs more than running the call in it. A connection whose first bytes ask for the
calls path is read here, and answered with one write; whatever else comes over it, it is handed to uvicorn's own
protocol for good, with every byte that was not answered yet.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from .asgi import Message
from .routes import CALLS_PATH

log = logging.getLogger("agentlightning.store.server")

_FIRST_LINE = f"POST {CALLS_PATH} HTTP/1.1\r\n".encode()
_LONGEST_HEAD = 32_768
_LONGEST_BODY = 8_000_000
"""Larger bodies take the general way, which reads them in pieces and refuses those above the limit."""
_HEAD_END = b"\r\n\r\n"


class StoreProtocol(H11Protocol):
    """One connection. Requests on it are answered one after the other."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._short: bool | None = None
        self._buffer = bytearray()
        self._needed = 0
        self._busy = False
        self._last = False
        self._lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._short is None:
            self._short = data.startswith(_FIRST_LINE)
        if not self._short:
            super().data_received(data)
            return
        self._unset_keepalive_if_required()
        self._buffer += data
        if not self._busy:
            self._take()
        elif len(self._buffer) > _LONGEST_BODY:
            self.transport.pause_reading()

    def _take(self) -> None:
        """Start on the next request where it is complete."""
        buffer = self._buffer
        if len(buffer) < self._needed:
            return
        end = buffer.find(_HEAD_END, 0, _LONGEST_HEAD)
        if end < 0:
            if len(buffer) >= _LONGEST_HEAD:
                self._go_the_long_way()
            return
        parsed = parse_head(bytes(buffer[:end]))
        if parsed is None:
            self._go_the_long_way()
            return
        headers, length, self._last = parsed
        self._needed = end + 4 + length
        if len(buffer) < self._needed:
            return
        body = bytes(buffer[end + 4 : self._needed])
        del buffer[: self._needed]
        self._needed = 0
        self._busy = True
        task = self.loop.create_task(self._answer(headers, body))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _go_the_long_way(self) -> None:
        self._short = False
        data = bytes(self._buffer)
        self._buffer.clear()
        super().data_received(data)

    async def _answer(self, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": "POST",
            "root_path": "",
            "path": CALLS_PATH,
            "raw_path": CALLS_PATH.encode(),
            "query_string": b"",
            "headers": headers,
            "state": {},
        }
        exchange = _Exchange(body, self._lost)
        app = cast(Any, self.app)  # pyright: ignore[reportUnknownMemberType]
        try:
            await app(scope, exchange.receive, exchange.send)
        except Exception as error:
            log.error("a request could not be answered", exc_info=error)
            exchange.answer = b""
        self._busy = False
        if self._lost.is_set():
            return
        if not exchange.answer or self._last:
            self.transport.write(exchange.answer)
            self.transport.close()
            return
        self.transport.write(exchange.answer)
        self.transport.resume_reading()
        if self._buffer:
            self._take()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone; a held call hears of it."""
        self._lost.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close, after the answer that is under way."""
        if self._busy:
            self._last = True
        else:
            super().shutdown()


class _Exchange:
    """The two ASGI callables of one request; the answer is kept until it is whole."""

    def __init__(self, body: bytes, lost: asyncio.Event) -> None:
        self._body: bytes | None = body
        self._lost = lost
        self._head = b""
        self.answer = b""

    async def receive(self) -> Message:
        """The body, and then nothing until the connection is lost."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._lost.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Collects status, headers and body."""
        if message["type"] == "http.response.start":
            status = HTTPStatus(message["status"])
            lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
            lines += [name + b": " + value for name, value in message["headers"]]
            self._head = b"\r\n".join(lines) + _HEAD_END
            self.answer = self._head
        else:
            self.answer += message.get("body", b"")


def parse_head(head: bytes) -> tuple[list[tuple[bytes, bytes]], int, bool] | None:
    """Headers, length of the body and whether it is the last request; None for what needs the general parser."""
    lines = head.split(b"\r\n")
    if lines[0] + b"\r\n" != _FIRST_LINE:
        return None
    headers: list[tuple[bytes, bytes]] = []
    length = -1
    last = False
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip()
        if not colon or not name or name[:1] in b" \t" or name[-1:] in b" \t" or b"\n" in line or b"\r" in line:
            return None
        if name == b"content-length":
            if length >= 0 or not value.isdigit() or len(value) > 9:
                return None
            length = int(value)
        elif name in (b"transfer-encoding", b"expect", b"upgrade"):
            return None
        elif name == b"connection":
            last = value.lower() == b"close"
        headers.append((name, value))
    return (headers, length, last) if 0 <= length <= _LONGEST_BODY else None
