"""The smallest parts of ASGI that the hot paths need: headers, bodies with a limit, answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ...core.errors import PayloadTooLarge, printable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

ACCESS_LOGGER = "agentlightning.store.server.access"
access_log = logging.getLogger(ACCESS_LOGGER)
_beat_log = logging.getLogger("agentlightning.store.server.heartbeats")
"""Apart, so that the calls can be shown without what every worker sends every few seconds."""
_BEATS = ("POST /update_worker", "POST /v1/agl/workers/", "GET /health", "GET /v1/agl/health", "POST /heartbeat")


class Disconnected(Exception):
    """The caller went away before its request was complete."""


def header(scope: Scope, name: bytes) -> str | None:
    """A request header by its lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises `PayloadTooLarge` beyond `limit` bytes, after reading on so that the answer arrives."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected()
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > 4 * limit:
            break
        if not message.get("more_body", False):
            break
    if size > limit:
        raise PayloadTooLarge(
            f"The request is larger than the limit of {limit} bytes (max_payload_mb)", limit=limit, size=size
        )
    return b"".join(chunks) if len(chunks) != 1 else chunks[0]


async def until_gone(receive: Receive) -> None:
    """Returns when the connection is lost."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(
    send: Send, status: int, body: bytes, content_type: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Send a whole answer."""
    fields = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    if headers:
        fields.extend(headers)
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def note_access(scope: Scope, shown: str, status: int, seconds: float) -> None:
    """One access line at DEBUG, in the form of the tutorial's log."""
    log = _beat_log if shown.startswith(_BEATS) else access_log
    if log.isEnabledFor(logging.DEBUG):
        client = scope.get("client") or ("-", 0)
        version = scope.get("http_version", "1.1")
        log.debug(
            '%s:%s - "%s HTTP/%s" %d in %.2f ms', client[0], client[1], printable(shown), version, status, seconds * 1e3
        )
