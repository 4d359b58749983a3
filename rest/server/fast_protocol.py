"""The server's end of a connection: uvicorn's, with deadlines, and a short cut for batched calls.

Parsing one request in pure Python costs more than running the call in it. A connection whose first bytes ask for the
calls path is read here, and answered with one write; whatever else comes over it, it is handed to uvicorn's own
protocol for good, with every byte that was not answered yet.

Uvicorn has no deadline for the head and the body of a request, nor for an answer that nobody reads. `StoreProtocol.look`
has, and is called once a second for each connection: no timer has to be set for each request.
"""

from __future__ import annotations

import asyncio
import logging
import math
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..api.routes import CALLS_PATH
from .access_policy import NOT_PLAIN
from .asgi import Message, Receive, Scope, Send

log = logging.getLogger("agentlightning.store.server")

IDLE_SECONDS = 75
"""How long a connection may be open between two requests, and before its first one."""
HEAD_SECONDS = 20.0
BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 50_000
"""A body has `BODY_SECONDS`, and a second more for so many bytes of it that arrived."""
UNREAD_SECONDS = 60.0
"""How long a client may take nothing at all of an answer that is ready for it."""

_FIRST_LINE = f"POST {CALLS_PATH} HTTP/1.1\r\n".encode()
_LONGEST_HEAD = 32_768
_LONGEST_BODY = 8_000_000
"""Larger bodies take the general way, which reads them in pieces and refuses those above the limit."""
_HEAD_END = b"\r\n\r\n"
_LATE = b'{"detail":"the request did not arrive in time","error_type":"RequestTimeout","code":"request_timeout"}'
_LATE_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_LATE), _LATE)
)


class StoreProtocol(H11Protocol):
    """One connection. Requests on it are answered one after the other.

    When the client leaves, the work for its request is cancelled.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inner: Any = self.app  # pyright: ignore[reportUnknownMemberType]
        self.app = cast(Any, self._watched)
        self._short: bool | None = None
        self._buffer = bytearray()
        self._parsed: tuple[list[tuple[bytes, bytes]], int, bool] | None = None
        self._needed = 0
        self._busy = False
        self._last = False
        self._lost = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self._phase: str = ""
        self._since = 0.0
        self._arrived = 0
        self._unread = 0
        self._unread_since = math.inf

    def connection_made(self, transport: Any) -> None:
        """A client connected."""
        super().connection_made(transport)
        self._enter("idle")

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._short is None:
            self._short = data.startswith(_FIRST_LINE)
        self._arrived += len(data)
        if not self._short:
            super().data_received(data)
            self._note_phase()
            return
        self._unset_keepalive_if_required()
        self._buffer += data
        if not self._busy:
            self._take()
        elif len(self._buffer) > _LONGEST_BODY:
            self.transport.pause_reading()

    # Deadlines

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            self._phase, self._since, self._arrived = phase, self.loop.time(), 0

    def _note_phase(self) -> None:
        """Where the general parser is: in a head, in a body, or with nothing to wait for."""
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._enter("body")
        else:
            self._enter("head" if state is h11.IDLE and self.conn.trailing_data[0] else "")

    def look(self, now: float) -> None:
        """Close the connection where the client has made the server wait for too long. Called once a second."""
        if self.flow.write_paused or self.transport.is_closing():
            self._look_at_reader(now)
            return
        self._unread_since = math.inf
        waited = now - self._since
        if self._phase == "idle" and waited > IDLE_SECONDS:
            self.transport.close()
        elif self._phase == "head" and waited > HEAD_SECONDS:
            self._too_late()
        elif self._phase == "body" and not self.flow.read_paused:
            if waited > BODY_SECONDS + self._arrived / BODY_BYTES_PER_SECOND:
                self._too_late()

    def _look_at_reader(self, now: float) -> None:
        left = self.transport.get_write_buffer_size()
        if self._unread_since == math.inf or left < self._unread:
            self._unread_since = now
        elif now - self._unread_since > UNREAD_SECONDS:
            where = "%s:%s" % (self.client or ("-", 0))
            log.warning("%s read nothing of its answer for %d s and was cut off", where, UNREAD_SECONDS)
            self.transport.abort()
        self._unread = left

    def _too_late(self) -> None:
        cycle = cast(Any, self.cycle)  # pyright: ignore[reportUnknownMemberType]
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(_LATE_ANSWER)
        self.transport.close()

    # Work that ends with its connection

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application; it is cancelled when the connection is lost, and its end is no error then."""
        self._task = asyncio.current_task()
        try:
            await self._inner(scope, receive, send)
        except asyncio.CancelledError:
            # Lost, or cut off because the server's grace time is over: in both cases nobody is answered.
            cycle = cast(Any, self.cycle)  # pyright: ignore[reportUnknownMemberType]
            if cycle is not None:
                cycle.disconnected = True
            self.transport.abort()
        finally:
            if self._task is asyncio.current_task():  # else the next request on this connection has begun
                self._task = None

    # The short cut

    def _take(self) -> None:
        """Start on the next request where it is complete."""
        buffer = self._buffer
        if len(buffer) < self._needed:
            return
        if self._parsed is None:
            end = buffer.find(_HEAD_END, 0, _LONGEST_HEAD)
            if end < 0:
                self._enter("head")
                if len(buffer) >= _LONGEST_HEAD:
                    self._go_the_long_way()
                return
            self._parsed = parse_head(bytes(buffer[:end]))
            if self._parsed is None:
                self._go_the_long_way()
                return
            self._needed = end + 4 + self._parsed[1]
            if len(buffer) < self._needed:
                self._enter("body")
                if not self._admitted(self._parsed[0]):
                    # The general way refuses it now; here its body would be kept first.
                    self._go_the_long_way()
                return
        headers, length, self._last = self._parsed
        body = bytes(buffer[self._needed - length : self._needed])
        del buffer[: self._needed]
        self._needed, self._parsed = 0, None
        self._busy = True
        self._enter("")
        task = self.loop.create_task(self._answer(headers, body))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _admitted(self, headers: list[tuple[bytes, bytes]]) -> bool:
        admits = getattr(self._inner, "admits", None)
        return admits is None or admits({"type": "http", "method": "POST", "path": CALLS_PATH, "headers": headers})

    def _go_the_long_way(self) -> None:
        self._short = False
        data = bytes(self._buffer)
        self._buffer.clear()
        self._enter("")
        super().data_received(data)
        self._note_phase()

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
        try:
            await self._watched(scope, exchange.receive, exchange.send)
        except Exception as error:
            log.error("a request could not be answered", exc_info=error)
            exchange.answer = b""
        if self._lost.is_set():
            return
        if not exchange.answer or self._last:
            self.transport.write(exchange.answer)
            self.transport.close()
            return
        self.transport.write(exchange.answer)
        if self.flow.write_paused:
            # A client that sends and does not read gets no further answer into memory.
            await self.flow.drain()
            if self._lost.is_set():
                return
        self._busy = False
        self.transport.resume_reading()
        if self._buffer:
            self._take()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: what was done for it is not needed any more."""
        self._lost.set()
        super().connection_lost(exc)
        if self._task is not None:
            self._task.cancel()

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
    if NOT_PLAIN.search(head.replace(b"\r\n", b"")):
        return None
    lines = head.split(b"\r\n")
    if lines[0] + b"\r\n" != _FIRST_LINE:
        return None
    headers: list[tuple[bytes, bytes]] = []
    length = -1
    last = False
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip()
        if not colon or not name or name[:1] in b" \t" or name[-1:] in b" \t":
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
