"""Facts as server-sent events: one event a fact, its position and index as the id, comments while nothing happens."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ...core.errors import AgentLightningError, InvalidInput, LogError
from ...core.model.rollout import Fact
from ...projections.replica.command_context import number_of
from ..api import encoding
from .invoke import Calls

KEEP_ALIVE_SECONDS = 15.0


async def stream_events(request: Request, calls: Calls) -> Response:
    """GET /v1/agl/events?types=a&types=b&since=POSITION, or with a Last-Event-ID header.

    The id of an event is POSITION.INDEX: several facts share a position, and who lost the connection among them resumes
    after the one that arrived. The first line is the comment `: since POSITION`, where the stream starts: a client that
    lost its connection before the first event resumes there.
    """
    try:
        since, after = _resumed(request)
        token = calls.position()
        if since is None:
            since = number_of(token) - 1 if token else None
        elif token:
            log_id = token.partition(":")[0]
            seen = since + 1 if after is None else since + 2
            await calls.catch_up(f"{log_id}::{max(seen, 0)}")
    except AgentLightningError as error:
        status = encoding.status_of(error)
        headers = {"Retry-After": "1"} if status == 503 else None
        return Response(encoding.to_json(encoding.error_body(error)), status, headers, media_type="application/json")
    facts = calls.store.subscribe(request.query_params.getlist("types") or None, since=since)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_lines(facts, since, after, calls), media_type="text/event-stream", headers=headers)


_EVENT_ID = re.compile(r"(-?[0-9]{1,18})(?:\.([0-9]{1,18}))?")


def _resumed(request: Request) -> tuple[int | None, tuple[int, int] | None]:
    """(position after which facts are wanted, (position, index) of the last fact that arrived, if one is named)."""
    # An EventSource that reconnects sends the address that it was opened with, `since` too, and the header.
    text = request.headers.get("last-event-id") or request.query_params.get("since")
    if text is None:
        return None, None
    found = _EVENT_ID.fullmatch(text)
    if found is None:
        raise InvalidInput(f"since is a position, a whole number, or the id of an event, not {text[:50]!r}")
    position = int(found[1])
    return (position, None) if found[2] is None else (position - 1, (position, int(found[2])))


def _place(fact: Fact) -> tuple[int, int]:
    """(position, index among the facts of that position)."""
    return fact.position, int(fact.id.rpartition("/")[2])


async def _lines(
    facts: AsyncIterator[Fact], since: int | None, after: tuple[int, int] | None, calls: Calls
) -> AsyncIterator[bytes]:
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
                except (StopAsyncIteration, LogError):  # closed or ended: a client that opens the stream again gets the reason
                    return
                pending = None
                place = _place(fact)
                if after is None or place > after:
                    yield b"id: %d.%d\nevent: %s\ndata: %s\n\n" % (*place, fact.type.encode(), encoding.to_json(fact))
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.wait({pending})


async def _next(facts: Any) -> Fact:
    return await facts.__anext__()
