"""The ASGI application of a store: who may come in, then the batched calls, then one handler for every route."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...core.errors import AgentLightningError, HistoryChanged, InvalidInput, StoreUnreachable, Unauthorized
from ...core.model.store_interface import LightningStore
from ..api import encoding
from ..api.encoding import LARGE_BODY, count_json
from ..api.openapi import describe
from ..api.routes import (
    CALLS_PATH,
    EVENTS_PATH,
    HEALTH_PATH,
    LOG_PATH,
    METHODS,
    OPENAPI_PATH,
    OTLP_TRACES_PATH,
    OTLP_UNSUPPORTED,
    POSITION_HEADER,
    PRINT_HEADER,
    READING,
    ROUTES,
)
from ..client.remote_log import describe_log, read_records
from . import uvicorn_runner
from .access_policy import AccessPolicy
from .invoke import (
    CallerGone,
    Calls,
    Disconnected,
    RouteHandler,
    answer,
    command_of,
    header,
    note_access,
    notes_access,
    read_body,
    shown_path,
    until_gone,
    waits,
)
from .otlp import OtlpHandler
from .sse import stream_events

log = logging.getLogger("agentlightning.store.server")

MSGPACK = b"application/msgpack"
JSON = b"application/json"
_POSITION, _PRINT = POSITION_HEADER.lower().encode(), PRINT_HEADER.lower().encode()
MAX_CALLS = 4096
MAX_SIDE_BY_SIDE = 256
DEFAULT_PAYLOAD_MB = 64.0


class StoreApp:
    """Serves `store` over HTTP. `token` None: nobody is asked. Bodies beyond `max_payload_mb` get 413.

    `host` is where the server is bound; it, `allow_hosts`, `access_host` and `cors_allow_origins` make the `AccessPolicy`.
    """

    def __init__(
        self,
        store: LightningStore,
        *,
        token: str | None = None,
        cors_allow_origins: Sequence[str] | str | None = None,
        max_payload_mb: float = DEFAULT_PAYLOAD_MB,
        host: str = "127.0.0.1",
        allow_hosts: Sequence[str] = (),
        access_host: str | None = None,
    ) -> None:
        self.calls = Calls(store)
        self.limit = int(max_payload_mb * 1_000_000)
        # A payload of the limit is larger as a request: names, quotes, other fields of the call.
        self.body_limit = self.limit + self.limit // 4 + 65_536
        self._policy = AccessPolicy(host, allow_hosts, cors_allow_origins, access_host or uvicorn_runner.access_host(host))
        self._token = None if token is None else f"Bearer {token}".encode()
        self.app = self._application()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: HTTP requests only."""
        if scope["type"] == "http":
            await self.enter(self._serve, scope, receive, send)

    async def enter(self, inside: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to `inside`, unless the access policy or the token keeps it out."""
        began = time.perf_counter()
        try:
            origin = self._policy.admit(scope)
            if origin is not None:
                preflight = self._policy.preflight_headers(origin, scope)
                if preflight is not None:
                    await answer(send, 204, b"", b"text/plain", preflight)
                    return
                send = _with_headers(send, self._policy.answer_headers(origin))
            self._authorize(scope)
        except AgentLightningError as error:
            await self._refuse(scope, send, error, began)
            return
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await inside(scope, receive, sending)
        except asyncio.CancelledError:  # what is under way longer than a server that stops waits for it
            if begun or not self.calls.closing:
                raise
            await self._refuse(scope, send, StoreUnreachable("the store is shutting down"), began)

    def stop(self) -> None:
        """End held calls and event streams; their callers repeat them."""
        self.calls.stop()

    def _application(self) -> Starlette:
        otlp = OtlpHandler(self.calls.store, self.body_limit)
        routes = [
            StarletteRoute(HEALTH_PATH, _health, methods=["GET"]),
            StarletteRoute("/health", _health, methods=["GET"]),
            StarletteRoute(OPENAPI_PATH, _openapi, methods=["GET"]),
            StarletteRoute(EVENTS_PATH, self._events, methods=["GET"]),
            StarletteRoute(LOG_PATH, self._log, methods=["GET"]),
            StarletteRoute(LOG_PATH + "/{topic}", self._records, methods=["GET"]),
            StarletteRoute(OTLP_TRACES_PATH, otlp.traces, methods=["POST"]),
            *(StarletteRoute(path, _unsupported, methods=["POST"]) for path in OTLP_UNSUPPORTED),
        ]
        for route in ROUTES:
            handler = RouteHandler(route, self.calls, self.body_limit)
            routes.append(StarletteRoute(route.path, handler.serve, methods=[route.verb]))
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _failure})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        try:
            if scope["path"] == CALLS_PATH and scope["method"] == "POST":
                await self._serve_calls(scope, receive, send)
                return
            self.calls.position()  # a store that has ended says so here, for every path
            await self.calls.catch_up(header(scope, b"x-agl-position"))
        except (Disconnected, CallerGone):
            return
        except Exception as error:
            await self._refuse(scope, send, error, began)
            return
        await self._serve_route(scope, receive, send, began)

    async def _serve_route(self, scope: Scope, receive: Receive, send: Send, began: float) -> None:
        status = 499

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *self._position_headers()]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except (Disconnected, CallerGone):
            return
        finally:
            if notes_access():
                note_access(scope, f"{scope['method']} {quote(scope['path'])}", status, time.perf_counter() - began)

    def _authorize(self, scope: Scope) -> None:
        if self._token is None:
            return
        given = header(scope, b"authorization") or ""
        if not hmac.compare_digest(given.encode("latin-1"), self._token):
            raise Unauthorized("This store asks for a token: send it as 'Authorization: Bearer TOKEN'")

    def _position_headers(self) -> list[tuple[bytes, bytes]]:
        try:
            token, basis = self.calls.position(), self.calls.basis()
        except HistoryChanged:  # the store ended while this was answered; the answer is right without a position
            return []
        headers: list[tuple[bytes, bytes]] = []
        if token is not None:
            headers.append((_POSITION, token.encode()))
        if basis is not None:
            headers.append((_PRINT, basis.encode()))
        return headers

    async def _refuse(self, scope: Scope, send: Send, error: Exception, began: float) -> None:
        status = encoding.status_of(error)
        if status >= 500:
            encoding.note_failure(f"{scope['method']} {scope['path']}", status, error)
        extra = [(b"retry-after", b"1")] if status == 503 else []
        if status == 401:
            extra = [(b"www-authenticate", b"Bearer")]
        await answer(send, status, encoding.to_json(encoding.error_body(error)), JSON, extra)
        note_access(scope, f"{scope['method']} {quote(scope['path'])}", status, time.perf_counter() - began)

    async def _serve_calls(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Several calls of one client, run side by side; answered in order, each with its own status."""
        data = await read_body(scope, receive, self.body_limit)
        frames = encoding.as_list(
            await asyncio.to_thread(_unpacked, data) if len(data) > LARGE_BODY else _unpacked(data)
        )
        if frames is None or not 0 < len(frames) <= MAX_CALLS:
            raise InvalidInput(f"the body is a list of 1 to {MAX_CALLS} calls")
        await self.calls.catch_up(header(scope, b"x-agl-position"))
        if len(frames) == 1:
            answers = [await self._one(frames[0], scope, receive)]
        else:
            answers = await self._several(frames, scope)
        body = msgspec.msgpack.encode([msgspec.Raw(data) for data in answers])
        await answer(send, 200, body, MSGPACK, self._position_headers())

    async def _several(self, frames: list[Any], scope: Scope) -> list[bytes]:
        """The answers of a batch, bounded in bytes: calls beyond the bound are not run, and may be sent again.

        What writes runs side by side, so that one commit serves all; what reads runs one after the other, because
        several large answers at a time are what the bound is for.
        """
        answers: list[bytes] = [b""] * len(frames)
        left = self.body_limit

        async def run(index: int) -> None:
            nonlocal left
            answers[index] = await self._one(frames[index], scope, None) if left > 0 else _put_off(self.body_limit)
            left -= len(answers[index])

        async def read(indexes: list[int]) -> None:
            for index in indexes:
                await run(index)
                await asyncio.sleep(0)  # others are served in between, and a caller that left is noticed

        reads: list[int] = []
        writes: list[int] = []
        for index, frame in enumerate(frames):
            (reads if _reads(frame) else writes).append(index)
        reading = asyncio.ensure_future(read(reads)) if reads else None
        try:
            for start in range(0, len(writes), MAX_SIDE_BY_SIDE):
                await asyncio.gather(*map(run, writes[start : start + MAX_SIDE_BY_SIDE]))
            if reading is not None:
                await reading
        finally:
            if reading is not None:
                reading.cancel()
        return answers

    async def _one(self, frame: Any, scope: Scope, receive: Receive | None) -> bytes:
        began = time.perf_counter()
        status = 200
        method = args = None
        try:
            command_id, name, given, basis = frame
            method = METHODS[name]
            args = encoding.as_dict(encoding.unwrap(given))
            if args is None:
                raise InvalidInput("the arguments of a call are an object, by name")
            work = self.calls.run(method, args, command_of(command_id, basis, remote=True))
            if waits(method, args):
                result = await self.calls.held(work, lambda: until_gone(receive) if receive is not None else _never())
            else:
                result = await work
            return encoding.pack_answer(200, encoding.compact(method.name, result))
        except CallerGone:
            status = 499
            raise
        except Exception as caught:
            error = _malformed(frame, caught)
            status = encoding.status_of(error)
            if status >= 500:
                encoding.note_failure(shown_path(method, args), status, error)
            return encoding.pack_answer(status, encoding.error_body(error))
        finally:
            if notes_access():
                note_access(scope, shown_path(method, args), status, time.perf_counter() - began)

    async def _events(self, request: Request) -> Response:
        return await stream_events(request, self.calls)

    async def _log(self, _: Request) -> Response:
        return await describe_log(self.calls.store)

    async def _records(self, request: Request) -> Response:
        return await read_records(request, self.calls.store)


def _unpacked(data: bytes) -> Any:
    """The calls of a batch, counted together: arguments that travel as JSON text are read later, call by call."""
    frames = encoding.unpack(data)
    calls = [call for call in map(encoding.as_list, encoding.as_list(frames) or ()) if call is not None]
    count_json(*(part for call in calls for part in call if isinstance(part, bytes)))
    return frames


def _malformed(frame: Any, error: Exception) -> Exception:
    """A call that is no call is the caller's fault; anything else stays what it was."""
    call = encoding.as_list(frame)
    if call is not None and len(call) == 4 and isinstance(call[1], str):
        frame = call
        if call[1] not in METHODS:
            return InvalidInput(f"unknown method {call[1][:100]!r}")
        if (
            isinstance(frame[0], str)
            and isinstance(frame[2], (dict, bytes))
            and isinstance(frame[3], (str, type(None)))
        ):
            return error
    return InvalidInput("a call is a list of [id, method, arguments, basis]")


def _reads(frame: Any) -> bool:
    call = encoding.as_list(frame)
    return call is not None and len(call) == 4 and isinstance(call[1], str) and call[1] in READING


def _put_off(limit: int) -> bytes:
    error = StoreUnreachable(
        f"the answers of this batch are larger than {limit} bytes; this call was not run, send it again"
    )
    return encoding.pack_answer(503, encoding.error_body(error))


async def _never() -> None:
    """The caller of one call of many: its task is cancelled when the connection is lost."""
    await asyncio.get_running_loop().create_future()


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *headers]
        await send(message)

    return sending


async def _health(_: Request) -> Response:
    return Response(b'{"status":"ok"}', media_type="application/json")


async def _openapi(_: Request) -> Response:
    return Response(encoding.to_json(describe()), media_type="application/json")


async def _unsupported(request: Request) -> Response:
    body = {"detail": f"{request.url.path} is not implemented: this store takes traces only"}
    return Response(encoding.to_json(body), 501, media_type="application/json")


async def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "Internal server error"
    headers = error.headers if isinstance(error, HTTPException) else None
    return Response(encoding.to_json({"detail": detail}), status, headers, media_type="application/json")


async def _failure(_: Request, error: Exception) -> Response:
    return Response(
        encoding.to_json(encoding.error_body(error)), encoding.status_of(error), media_type="application/json"
    )
