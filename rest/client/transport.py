"""The client's way to the store in one event loop: calls made while a request is under way share the next one."""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import httptools
import msgspec

from ...core.credentials import mask_text
from ...core.errors import AgentLightningError, ForeignPosition, StoreUnreachable
from ...projections.replica.command_context import joined, number_of, raised, split
from ..api import encoding
from ..api.routes import CALLS_PATH, HEALTH_PATH, POSITION_HEADER, PRINT_HEADER

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("agentlightning.store.client")

IDLE_SECONDS = 30.0
"""Below the server's 75: a connection that was idle for longer may be closed from the other side at this moment."""
MAX_FLIGHTS = 2
MAX_BATCH_CALLS = 256
MAX_BATCH_BYTES = 4_000_000
RETRY_STATUSES = frozenset((408, 429, 502, 503, 504))
TRANSPORT_ERRORS = (asyncio.TimeoutError, OSError)


def answered_error(status: int, body: Any, url: str) -> AgentLightningError:
    """What an answer with an error status raises at the client: our error, which is an `aiohttp.ClientResponseError` too.

    Clients of older releases raised that class, so ``except aiohttp.ClientResponseError`` and ``error.status`` work.
    aiohttp is loaded for such answers and for streams of events only: it takes a quarter of the start of a worker.
    """
    return _with_status(encoding.error_from(status, body), status, url)


def _with_status(error: AgentLightningError, status: int, url: str) -> AgentLightningError:
    import aiohttp
    from multidict import CIMultiDict, CIMultiDictProxy
    from yarl import URL

    kind = _answered(type(error))
    made: Any = kind.__new__(kind, *error.args)
    made.args = error.args
    address = URL(url)
    info = aiohttp.RequestInfo(address, "POST", CIMultiDictProxy(CIMultiDict[str]()), address)
    made.__dict__.update(error.__dict__, status=status, headers=None, history=(), request_info=info)
    return made


@cache
def _answered(kind: type[AgentLightningError]) -> type[AgentLightningError]:
    """A class that is both `kind` and aiohttp's. Its errors are pickled as `kind`, and made again from that."""
    import aiohttp

    def reduce(self: Any) -> tuple[Any, ...]:
        plain = kind.__new__(kind, *self.args)
        plain.args = self.args
        plain.__dict__.update({name: value for name, value in self.__dict__.items() if name not in _RESPONSE_FIELDS})
        return _with_status, (plain, self.status, str(self.request_info.url))

    body = {"__module__": kind.__module__, "__str__": kind.__str__, "__repr__": kind.__repr__, "__reduce__": reduce}
    return type(kind.__name__, (kind, aiohttp.ClientResponseError), body)


_POSITION, _PRINT = POSITION_HEADER.lower(), PRINT_HEADER.lower()
_RESPONSE_FIELDS = frozenset({"status", "headers", "history", "request_info"})


@dataclass
class Seen:
    """What a client knows of its store: the highest position token, and what its next command can be based on."""

    token: str | None = None
    basis: str | None = None
    greeted: bool = False
    position: int = -1
    _head: str = ""
    _spans: Mapping[int, int] = field(default_factory=dict[int, int])
    """The ends of span partitions that were seen: answers to calls side by side arrive in any order."""
    _noted: tuple[str, str | None] | None = None
    """Token and basis of the answer that was noted last: most answers say the same."""

    def note(self, headers: Any) -> None:
        """Keep what an answer's headers say, where it is newer."""
        self.greeted = True
        token, basis = headers.get(_POSITION), headers.get(_PRINT)
        if token is None or (token, basis) == self._noted:
            return
        self._noted = (token, basis)
        head, spans = split(token)
        position = number_of(head)
        if position >= self.position:
            self.position, self._head, self.basis = position, head, basis
        self._spans = raised(self._spans, spans)
        self.token = joined(self._head, self._spans)

    def forget(self, token: str | None, address: str, error: ForeignPosition) -> None:
        """Drop what was known, after the store refused `token` or what was based on it. Logged once for all callers."""
        if self.token == token and (self.token is not None or self.basis is not None or self.greeted):
            self.token = self.basis = self._noted = None
            self.greeted, self.position, self._spans = False, -1, {}
            log.warning(
                "the store at %s has another history than before (%s); going on with what it holds now", address, error
            )


class Transient(StoreUnreachable):
    """No answer, or one that says "not now": the same call may be sent again."""

    def __init__(self, message: str = "", *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Lost(ConnectionError):
    """The connection ended before the answer was complete. `idle`: before its first byte."""

    def __init__(self, reason: str, *, idle: bool) -> None:
        super().__init__(reason)
        self.idle = idle


@dataclass(slots=True)
class Answer:
    """A whole answer; header names are in lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


Done = Callable[["Answer | Exception"], None]
"""Called once with the answer of a request, `Lost` or asyncio.TimeoutError; it raises nothing."""


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._chunks: list[bytes] = []
        self._begun = False
        self._done: Done | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        """Set for the deadline of this request or of an earlier one: most requests need none of their own."""
        self._transport: asyncio.Transport | None = None
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
        self._fail(Lost(str(exc or "the connection was closed"), idle=not self._begun))

    def send(self, data: bytes, timeout_seconds: float, done: Done) -> None:
        """Send one request. After an error the connection is closed."""
        assert self._transport is not None
        self._done = done
        self._begun = False
        self._deadline = self._loop.time() + timeout_seconds
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._late)
        self._transport.write(data)

    def _late(self) -> None:
        self._timer = None
        if self._done is not None:
            if self._loop.time() < self._deadline:
                self._timer = self._loop.call_at(self._deadline, self._late)
            else:
                self._fail(asyncio.TimeoutError())

    async def request(self, data: bytes, timeout_seconds: float) -> Answer:
        """As `send`, for who can wait. Raises `Lost` and asyncio.TimeoutError."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        self.send(data, timeout_seconds, partial(_settle, future))
        try:
            return await future
        except asyncio.CancelledError:
            self.close()
            raise

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Lost(f"the answer is not HTTP: {error}", idle=False))
            self.close()

    def on_message_begin(self) -> None:
        """Called by the parser. An answer that nobody asked for would be taken for that of the next request."""
        if self._done is None:
            self.close()
        self._answer = Answer()
        self._chunks = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        answer = self._answer
        answer.status = self._parser.get_status_code()
        if answer.status < 200:
            return  # 100 Continue and others: the answer comes later
        answer.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        done, self._done = self._done, None
        if not self._parser.should_keep_alive():
            self.close()
        self._idle_since = time.monotonic()
        if done is not None:
            done(answer)

    def _fail(self, error: Exception) -> None:
        done, self._done = self._done, None
        if done is not None:
            self.close()
            done(error)

    def close(self) -> None:
        """Close without waiting; a request that is under way is not answered any more."""
        self._open = False
        self._done = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.close()


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


class Connections:
    """Connections to one address, opened when none is idle."""

    def __init__(self, base: str, token: str | None, connect_seconds: float) -> None:
        parts = urlsplit(base)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._connect_seconds = connect_seconds
        self._idle: list[Connection] = []
        self._calls, self._health = (f"{line} HTTP/1.1\r\n".encode("latin-1") for line in
                                     (f"POST {parts.path}{CALLS_PATH}", f"GET {parts.path}{HEALTH_PATH}"))  # fmt: skip
        lines = [f"Host: {parts.netloc.rpartition('@')[2]}", "Content-Type: application/msgpack"]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        elif parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode("latin-1")
            lines.append(f"Authorization: Basic {base64.b64encode(user).decode()}")
        self._head = "\r\n".join(lines).encode("latin-1") + b"\r\n"

    async def exchange(self, body: bytes | None, extra: bytes, timeout_seconds: float) -> Answer:
        """Send one request and read its answer. `body`: of calls; None asks for the health of the store. `extra`: header
        lines, each with its line end.

        A connection that turns out to be closed before a byte of an answer is replaced once: the server ended it
        while it was idle, and every call has an id that makes a repetition harmless. Raises as `Connection.request`.
        """
        connection = self.take()
        if connection is not None:
            try:
                return await self._on(connection, body, extra, timeout_seconds)
            except Lost as error:
                if not error.idle:
                    raise
        return await self._on(await self._connect(), body, extra, timeout_seconds)

    async def _on(self, connection: Connection, body: bytes | None, extra: bytes, timeout_seconds: float) -> Answer:
        answer = await connection.request(self.framed(body, extra), timeout_seconds)
        self.give_back(connection)
        return answer

    def framed(self, body: bytes | None, extra: bytes) -> bytes:
        """A whole request."""
        if body is None:
            return b"%b%b%b\r\n" % (self._health, self._head, extra)
        return b"%b%bContent-Length: %d\r\n%b\r\n%b" % (self._calls, self._head, len(body), extra, body)

    def take(self) -> Connection | None:
        """An idle connection; None where one has to be opened."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose request was answered for the next one."""
        if connection.usable:
            self._idle.append(connection)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        opening = loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        _, connection = await asyncio.wait_for(opening, self._connect_seconds)
        return connection

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop().close()


@dataclass(slots=True)
class _Waiting:
    frame: bytes
    future: asyncio.Future[Any]


@dataclass(slots=True, eq=False)
class _Flight:
    """Calls that share a request, and what carries it: an idle connection, or a task that opens one."""

    batch: list[_Waiting]
    carrier: Connection | asyncio.Task[None] | None = None


class Transport:
    """Requests of one client in one event loop."""

    def __init__(
        self, base: str, seen: Seen, token: str | None, request_timeout: float, connection_timeout: float
    ) -> None:
        self.base = base
        self.shown = mask_text(base)
        self._seen = seen
        self._request_timeout = request_timeout
        self._connections = Connections(base, token, connection_timeout)
        self._loop = asyncio.get_running_loop()
        self._pending: list[_Waiting] = []
        self._flights: set[_Flight] = set()
        self._scheduled = False
        self._token = token
        self.session: aiohttp.ClientSession | None = None
        """Of the streams of events; None before the first."""

    def open_session(self) -> aiohttp.ClientSession:
        """The session for streams of events."""
        import aiohttp

        if self.session is None:
            self.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0),
                headers={} if self._token is None else {"Authorization": f"Bearer {self._token}"},
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            )
        return self.session

    async def ask(self, frame: bytes) -> Any:
        """Send a call, together with others where there are; its [status, result]. Raises `Transient` and others."""
        waiting = _Waiting(frame, self._loop.create_future())
        self._pending.append(waiting)
        self._schedule()
        return await waiting.future

    def _schedule(self) -> None:
        if self._pending and not self._scheduled and len(self._flights) < MAX_FLIGHTS:
            # At the end of this turn of the loop: calls of other tasks that the last answer woke join.
            self._scheduled = True
            self._loop.call_soon(self._launch)

    def _launch(self) -> None:
        self._scheduled = False
        size = count = 0
        for waiting in self._pending[:MAX_BATCH_CALLS]:
            size += len(waiting.frame)
            if count and size > MAX_BATCH_BYTES:
                break
            count += 1
        batch, self._pending = self._pending[:count], self._pending[count:]
        batch = [waiting for waiting in batch if not waiting.future.done()]
        if batch:
            self._depart(_Flight(batch))
        self._schedule()

    def _depart(self, flight: _Flight) -> None:
        self._flights.add(flight)
        body = _packed([waiting.frame for waiting in flight.batch])
        connection = self._connections.take()
        if connection is None:
            flight.carrier = self._loop.create_task(self._fly(flight, body))
            return

        def arrived(answer: Answer | Exception) -> None:
            if isinstance(answer, Lost) and answer.idle:  # the server ended it while it was idle: another one is opened
                flight.carrier = self._loop.create_task(self._fly(flight, body))
                return
            if isinstance(answer, Answer):
                self._connections.give_back(connection)
            self._land(flight, answer)

        flight.carrier = connection
        connection.send(self._connections.framed(body, self._position()), self._request_timeout, arrived)

    async def _fly(self, flight: _Flight, body: bytes) -> None:
        try:
            answer = await self._connections.exchange(body, self._position(), self._request_timeout)
        except asyncio.CancelledError:
            self._cancel(flight)
            raise
        except Exception as error:
            self._land(flight, error)
        else:
            self._land(flight, answer)

    def _land(self, flight: _Flight, answer: Answer | Exception) -> None:
        """Every call of a flight gets its result. Raises nothing: a parser calls it."""
        self._flights.discard(flight)
        try:
            results = self._results(answer, len(flight.batch))
        except Exception as error:
            # One exception in many tasks would collect their tracebacks.
            results = [_copy(error) for _ in flight.batch]
        for waiting, result in zip(flight.batch, results, strict=True):
            _settle(waiting.future, result)
        self._schedule()

    def _cancel(self, flight: _Flight) -> None:
        self._flights.discard(flight)
        for waiting in flight.batch:
            waiting.future.cancel()

    async def post(self, frames: list[bytes], hold_seconds: float | None = None) -> list[Any]:
        """Send calls in one request; the list of [status, result]. With `hold_seconds` the server may take that long."""
        timeout_seconds = self._request_timeout + (hold_seconds or 0.0)
        try:
            answer = await self._connections.exchange(_packed(frames), self._position(), timeout_seconds)
        except TRANSPORT_ERRORS as error:
            return self._results(error, len(frames))
        return self._results(answer, len(frames))

    def _position(self) -> bytes:
        token = self._seen.token
        return b"" if token is None else f"{POSITION_HEADER}: {token}\r\n".encode("latin-1")

    def _results(self, answer: Answer | Exception, count: int) -> list[Any]:
        """The results of a request with `count` calls. Raises where there are none."""
        if isinstance(answer, TRANSPORT_ERRORS):
            raise Transient(f"no answer from the store at {self.shown}: {_reason(answer)}") from answer
        if isinstance(answer, Exception):
            raise answer
        if answer.status != 200:
            raise self.refusal(answer.status, answer.body)
        packed = answer.headers.get("content-type", "").startswith("application/msgpack")
        answers = encoding.as_list(encoding.unpack(answer.body, counted=False)) if packed else None
        if answers is None or len(answers) != count:
            raise AgentLightningError(f"what answers at {self.shown} is not a store of this package")
        self._seen.note(answer.headers)
        return answers

    def refusal(self, status: int, data: bytes) -> AgentLightningError:
        """What a request that was refused as a whole raises."""
        try:
            body = encoding.from_json(data)
        except ValueError:
            body = None
        error = answered_error(status, body, self.base)
        if status in RETRY_STATUSES or error.retryable:
            return Transient(str(error), status=status)
        if status in (404, 405, 501) and not (isinstance(body, dict) and "error_type" in body):
            return AgentLightningError(f"what answers at {self.shown} is not a store of this package (status {status})")
        return error

    async def hello(self) -> None:
        """Ask for the store's position, which a first command is based on."""
        token = self._seen.token
        try:
            answer = await self._connections.exchange(None, self._position(), self._request_timeout)
        except UnicodeError as error:
            raise AgentLightningError(f"{self.shown} is not an address: {mask_text(str(error))}") from None
        except TRANSPORT_ERRORS as error:
            raise Transient(f"no answer from the store at {self.shown}: {_reason(error)}") from error
        if answer.status != 200:
            error = self.refusal(answer.status, answer.body)
            if not isinstance(error, ForeignPosition) or token is None:
                raise error
            self._seen.forget(token, self.shown, error)
            return await self.hello()
        self._seen.note(answer.headers)

    async def close(self) -> None:
        """Close the connections; calls under way are cancelled."""
        for flight in tuple(self._flights):
            if isinstance(flight.carrier, Connection):
                flight.carrier.close()
                self._cancel(flight)
            elif flight.carrier is not None:
                flight.carrier.cancel()
        for waiting in self._pending:
            waiting.future.cancel()
        self._pending.clear()
        self._connections.close()
        if self.session is not None:
            await self.session.close()


def _packed(frames: list[bytes]) -> bytes:
    return msgspec.msgpack.encode([msgspec.Raw(frame) for frame in frames])


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _copy(error: Exception) -> Exception:
    if not isinstance(error, AgentLightningError):
        return error
    rebuild, arguments = error.__reduce__()[:2]  # pyright: ignore[reportGeneralTypeIssues]
    copy: Exception = rebuild(*arguments)
    copy.__cause__ = error.__cause__
    return copy


__all__ = ["Transport", "Seen", "Transient"]
