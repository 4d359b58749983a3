"""Uvicorn, started and stopped: in this event loop, or in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
from typing import Any

import uvicorn

from ...core.errors import AgentLightningError, InvalidInput, UnsafeBind
from ...core.loop_thread import LoopTask
from ..api.routes import DEFAULT_PORT
from .access_policy import is_loopback
from .fast_protocol import IDLE_SECONDS, StoreProtocol

log = logging.getLogger("agentlightning.store.server")

STARTUP_SECONDS = 60.0
GRACE_SECONDS = 2
TELL_FULL_SECONDS = 60.0


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
    """Leaves the process's signals alone: whoever started it decides what Ctrl+C means. Watches the connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._full_told = -math.inf
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
        if self._full_told == -math.inf:
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
        if loop.time() - self._full_told < TELL_FULL_SECONDS:
            return
        self._full_told = loop.time()
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
                    connection.look(now)
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
