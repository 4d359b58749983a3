"""Uvicorn: its connections with deadlines, and its start and stop in this event loop or in a thread with its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
from typing import Any, cast

import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ...core.errors import AgentLightningError, InvalidInput, UnsafeBind
from ...core.loop_thread import LoopTask
from ..api.routes import DEFAULT_PORT
from .access_policy import is_loopback

log = logging.getLogger("agentlightning.store.server")

STARTUP_SECONDS = 60.0
GRACE_SECONDS = 2
FULL_LOG_SECONDS = 60.0

IDLE_SECONDS = 75
"""How long a connection may be open between two requests, and before its first one."""
HEAD_SECONDS = 20.0
MAX_HEAD_BYTES = 32_768
"""Of a head that arrives in pieces: the parser has no bound of its own."""
BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 50_000
"""A body has `BODY_SECONDS`, and a second more for so many bytes of it that arrived."""
UNREAD_SECONDS = 60.0
"""How long a client may take nothing at all of an answer that is ready for it."""
MAX_PIPELINED = 64
_TIMEOUT = b'{"detail":"the request did not arrive in time","error_type":"RequestTimeout","code":"request_timeout"}'
_TIMEOUT_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_TIMEOUT), _TIMEOUT)
)


def check_bind(host: str, token: str | None) -> None:
    """Raises `UnsafeBind` where other machines could reach a store that asks for no token."""
    if is_loopback(host) or token:
        return
    raise UnsafeBind(
        f"Serving on {host} lets other machines reach the store: give a token (--token), or bind to 127.0.0.1"
    )


def check_port(host: str, port: int) -> None:
    """Raise what `bind` raises where the port is taken, and keep nothing: asked before a log is made or opened."""
    bind(host, port, listen=False).close()


def bind(host: str, port: int, listen: bool = True) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises RuntimeError that names a port in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only where it is: without, an answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Where SO_REUSEADDR means "steal the port" (Windows) it must not be set.
        if hasattr(socket, "AF_UNIX"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        if listen:
            listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise RuntimeError(f"Port {port} of {host} is in use: another store may be running there") from None
        raise RuntimeError(f"Cannot serve on {host}, port {port}: {error.strerror or error}") from None
    except OverflowError:
        listener.close()
        raise InvalidInput(f"{port} is not a port: it takes 0 to 65535") from None
    listener.setblocking(False)
    return listener


def access_host(host: str) -> str:
    """Where this machine reaches a server that is bound to `host`."""
    if host not in ("0.0.0.0", "::"):
        return f"[{host}]" if ":" in host else host
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        # No packet is sent: connecting a datagram socket only looks up the route. The address is one for documentation.
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"
    finally:
        probe.close()


class StoreProtocol(HttpToolsProtocol):
    """Uvicorn's connection, with deadlines and bounds that it lacks. Requests on it are answered one after the other.

    `check_deadlines` is called once a second for each connection: no timer has to be set for each request. When the
    client leaves, the work for its request is cancelled.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._application: Any = self.app
        self.app = cast(Any, self._run)
        self._task: asyncio.Task[Any] | None = None
        self._phase = "idle"
        self._since = self.loop.time()
        self._arrived = 0
        self._unread = 0
        self._unread_since = math.inf

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._arrived += len(data)
        super().data_received(data)
        if self._phase == "head" and self._arrived > MAX_HEAD_BYTES:
            self.send_400_response("The head of the request is too large.")
        elif len(self.pipeline) > MAX_PIPELINED:
            # Uvicorn reads on after each answer, however many requests are waiting.
            self.transport.abort()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._enter("head")

    def on_headers_complete(self) -> None:
        """The head of a request."""
        self._enter("body")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._enter("answer")
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer was written. The rest of a body that nobody waits for ends the connection.

        Uvicorn's would set a timer for the next request, which `check_deadlines` waits for here.
        """
        self.server_state.total_requests += 1
        if self._phase == "body" and not self.pipeline:
            self.transport.close()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            task = self.loop.create_task(cycle.run_asgi(app))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)
        if not self.pipeline:
            self._enter("idle" if self._phase == "answer" else self._phase)

    def _enter(self, phase: str) -> None:
        self._phase, self._since, self._arrived = phase, self.loop.time(), 0

    def check_deadlines(self, now: float) -> None:
        """Close the connection where the client has made the server wait for too long."""
        if self.flow.write_paused or self.transport.is_closing():
            self._check_reader(now)
            return
        self._unread_since = math.inf
        waited = now - self._since
        if self._phase == "idle" and waited > IDLE_SECONDS:
            self.transport.close()
        elif self._phase == "head" and waited > HEAD_SECONDS and self._answered():
            self._time_out()
        elif self._phase == "body" and not self.flow.read_paused:
            if waited > BODY_SECONDS + self._arrived / BODY_BYTES_PER_SECOND:
                self._time_out()

    def _answered(self) -> bool:
        cycle = cast(Any, self.cycle)
        return cycle is None or cycle.response_complete

    def _check_reader(self, now: float) -> None:
        left = self.transport.get_write_buffer_size()
        if self._unread_since == math.inf or left < self._unread:
            self._unread_since = now
        elif now - self._unread_since > UNREAD_SECONDS:
            where = "%s:%s" % (self.client or ("-", 0))
            log.warning("%s read nothing of its answer for %d s and was cut off", where, UNREAD_SECONDS)
            self.transport.abort()
        self._unread = left

    def _time_out(self) -> None:
        if self._answered() or not self.cycle.response_started:
            self.transport.write(_TIMEOUT_ANSWER)
        self.transport.close()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application; it is cancelled when the connection is lost, and its end is no error then."""
        self._task = asyncio.current_task()
        try:
            await self._application(scope, receive, _WholeAnswer(cast(Any, send).__self__))
        except asyncio.CancelledError:
            # Lost, or cut off because the server's grace time is over: in both cases nobody is answered.
            cast(Any, receive).__self__.disconnected = True
            self.transport.abort()
        finally:
            if self._task is asyncio.current_task():  # else the next request on this connection has begun
                self._task = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: what was done for it is not needed any more."""
        super().connection_lost(exc)
        if self._task is not None:
            self._task.cancel()


class _WholeAnswer:
    """The `send` of one request: an answer whose length is known goes out with its head, in one write and one packet."""

    def __init__(self, cycle: Any) -> None:
        self._cycle = cycle
        self._start: Message | None = None

    async def __call__(self, message: Message) -> None:
        """As `send` of ASGI."""
        cycle, start = self._cycle, self._start
        if start is None:
            has_length = any(name == b"content-length" for name, _ in message.get("headers", ()))
            if message["type"] == "http.response.start" and has_length and cycle.scope["method"] != "HEAD":
                self._start = message
            else:
                await cycle.send(message)
            return
        self._start = None
        if message.get("more_body", False):
            await cycle.send(start)
            await cycle.send(message)
            return
        if cycle.flow.write_paused:
            await cycle.flow.drain()
        if not cycle.disconnected:
            self._write(start, message["body"])

    def _write(self, start: Message, body: bytes) -> None:
        cycle = self._cycle
        parts = [STATUS_LINE[start["status"]]]
        for name, value in start["headers"]:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        parts.append(body)
        cycle.transport.write(b"".join(parts))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


class Serving:
    """One run of an ASGI application on a socket."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._app = app
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: LoopTask | None = None

    async def start(self, in_thread: bool) -> None:
        """Returns once requests are answered. Raises RuntimeError where the port is taken."""
        listener = bind(self.host, self.port)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http=StoreProtocol,
            loop="asyncio",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            # Its warnings are about requests that were no HTTP: one line for each would let anybody fill the log.
            log_level=logging.ERROR,
            lifespan="off",
            ws="none",
            server_header=False,
            date_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        server = _QuietServer(config)
        self._server = server
        if in_thread:
            self._thread = LoopTask("agl-store", lambda: server.serve(sockets=[listener]), _log_failure)
            self._thread.start()
        else:
            self._task = asyncio.ensure_future(server.serve(sockets=[listener]))
        for _ in range(math.ceil(STARTUP_SECONDS / 0.005)):
            if server.started:
                return
            if self._ended():
                break
            await asyncio.sleep(0.005)
        reason = None if self._thread is None else self._thread.error
        raise AgentLightningError(f"The server did not start on {self.host}, port {self.port}") from reason

    def _ended(self) -> bool:
        if self._task is not None:
            return self._task.done()
        return self._thread is not None and self._thread.done.is_set()

    async def wait(self) -> None:
        """Until the server has ended."""
        while not self._ended():
            await asyncio.sleep(0.1) if self._task is None else await asyncio.wait({self._task})

    async def stop(self) -> None:
        """Answer what is under way, then close. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.should_exit = True
        await self.wait()


def _log_failure(ended: LoopTask) -> None:
    if ended.error is not None:
        log.error("the server ended", exc_info=ended.error)


class _QuietServer(uvicorn.Server):
    """Handles no signals: the program that started it decides what Ctrl+C means. Watches the connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._full_logged = -math.inf
        self._loop_errors: Any = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn: begin to accept connections."""
        loop = asyncio.get_running_loop()
        self._loop_errors = loop.get_exception_handler()
        loop.set_exception_handler(self.loop_error)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn: stop."""
        await super().shutdown(sockets)
        # After a failed accept asyncio tries again a second later, and complains that the listener is closed by then.
        if self._full_logged == -math.inf:
            asyncio.get_running_loop().set_exception_handler(self._loop_errors)

    def loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error that no task has. asyncio reports thousands a second while no descriptor is left: one line is enough."""
        error = context.get("exception")
        if self.should_exit and isinstance(error, ValueError) and "_start_serving" in str(context.get("message")):
            return
        if not (
            isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
        ):
            (self._loop_errors or _default_handler)(loop, context)
            return
        if loop.time() - self._full_logged < FULL_LOG_SECONDS:
            return
        self._full_logged = loop.time()
        log.error(
            "no connection can be accepted: %s, with %d connections open; raise the limit of open files (ulimit -n)",
            error.strerror, len(self.server_state.connections),
        )  # fmt: skip

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, StoreProtocol):
                    connection.check_deadlines(now)
        return await super().on_tick(counter)

    def install_signal_handlers(self) -> None:
        """Older releases of uvicorn call this."""

    def capture_signals(self) -> Any:
        """Newer ones enter this."""
        from contextlib import nullcontext

        return nullcontext()


def _default_handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    loop.default_exception_handler(context)


__all__ = ["DEFAULT_PORT", "Serving", "access_host", "bind", "check_bind", "check_port"]
