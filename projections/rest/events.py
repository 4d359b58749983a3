"""Facts as server-sent events: one event a fact, its position as the id, comments while nothing happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ...core.errors import InvalidInput
from ...core.model import Fact
from . import wire
from .calls import Calls

KEEP_ALIVE_SECONDS = 15.0


async def stream_events(request: Request, calls: Calls) -> Response:
    """GET /v1/agl/events?types=a&types=b&since=POSITION, or with a Last-Event-ID header.

    The first line is the comment `: since POSITION`, where the stream starts: a client that lost its connection before
    the first event resumes there.
    """
    try:
        since = _since(request)
    except InvalidInput as error:
        return Response(wire.to_json(wire.error_body(error)), 400, media_type="application/json")
    types = request.query_params.getlist("types") or None
    if since is None:
        token = calls.position()
        since = int(token.rpartition(":")[2]) - 1 if token else None
    facts = calls.store.subscribe(types, since=since)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_lines(facts, since, calls), media_type="text/event-stream", headers=headers)


def _since(request: Request) -> int | None:
    text = request.query_params.get("since") or request.headers.get("last-event-id")
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(f"since is a position, a whole number, not {text[:50]!r}") from None


async def _lines(facts: AsyncIterator[Fact], since: int | None, calls: Calls) -> AsyncIterator[bytes]:
    yield b": since %d\n\n" % (-1 if since is None else since)
    pending: asyncio.Task[Fact] | None = None
    async with aclosing(facts) as open_facts:  # pyright: ignore[reportArgumentType, reportUnknownVariableType]
        try:
            while True:
                if pending is None:
                    pending = calls.hold(_next(open_facts))
                done, _ = await asyncio.wait({pending}, timeout=KEEP_ALIVE_SECONDS)
                if not done:
                    yield b": keep-alive\n\n"
                    continue
                if pending.cancelled():
                    return
                try:
                    fact = pending.result()
                except StopAsyncIteration:
                    return
                pending = None
                yield b"id: %d\nevent: %s\ndata: %s\n\n" % (fact.position, fact.type.encode(), wire.to_json(fact))
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.wait({pending})


async def _next(facts: Any) -> Fact:
    return await facts.__anext__()
