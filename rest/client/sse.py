"""A subscription over HTTP: reads the event stream, and goes on where it was when the connection is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp

from ...core.errors import AgentLightningError
from ...core.model.rollout import Fact
from ...core.retry import Retry
from ..api.routes import EVENTS_PATH, POSITION_HEADER
from .transport import TRANSPORT_ERRORS, Transient, Transport

_STREAM_ERRORS = (*TRANSPORT_ERRORS, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)

SILENCE_SECONDS = 45.0
"""Three times the server's interval of comments: after that long the connection is taken for dead."""


async def follow(
    transport: Callable[[], Transport], retry: Retry, types: Sequence[str] | None, since: int | None
) -> AsyncIterator[Fact]:
    """Every fact after `since` once and in order.

    Raises `StoreUnreachable` when `retry` gives up, and `ForeignPosition` where the store has another history than the
    one that was followed: which of its facts are new cannot be known.
    """
    cursor = _Cursor(since)
    while True:
        answer = await retry.run(lambda: _open(transport(), types, cursor.resume(), cursor.token))
        cursor.token = answer.headers.get(POSITION_HEADER, cursor.token)
        try:
            async for name, value in _fields(answer):
                if name == "":
                    cursor.started(value)
                elif name == "data":
                    fact = Fact.model_validate(json.loads(value))
                    if cursor.passes(fact):
                        yield fact
        except _STREAM_ERRORS:
            # Lost, or silent for too long: opened again where it was.
            await asyncio.sleep(0.05)
        finally:
            answer.close()


class _Cursor:
    """What was delivered. Facts of one command share a position, so the last one may have been cut in two."""

    def __init__(self, since: int | None) -> None:
        self._since = since
        self._last: int | None = None
        self._ids: set[str] = set()
        self.token: str | None = None
        """Where the store was when the stream was opened; it goes with the next opening, so that it is the same store."""

    def resume(self) -> int | None:
        return self._since if self._last is None else self._last - 1

    def started(self, comment: str) -> None:
        word, _, number = comment.strip().partition(" ")
        if word == "since" and self._since is None:
            self._since = int(number)

    def passes(self, fact: Fact) -> bool:
        if self._last is not None and (fact.position < self._last or fact.id in self._ids):
            return False
        if fact.position != self._last:
            self._last = fact.position
            self._ids.clear()
        self._ids.add(fact.id)
        return True


async def _open(
    transport: Transport, types: Sequence[str] | None, since: int | None, token: str | None
) -> aiohttp.ClientResponse:
    params: list[tuple[str, str]] = [("types", name) for name in types or ()]
    if since is not None:
        params.append(("since", str(since)))
    timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS, sock_connect=5.0)
    headers = None if token is None else {POSITION_HEADER: token}
    try:
        session, url = transport.open_session(), transport.base + EVENTS_PATH
        answer = await session.get(url, params=params, timeout=timeout, headers=headers)
    except _STREAM_ERRORS as error:
        raise Transient(f"no answer from the store at {transport.shown}: {error}") from error
    if answer.status != 200:
        raise transport.refusal(answer.status, await answer.read())
    if answer.content_type != "text/event-stream":
        raise AgentLightningError(f"what answers at {transport.shown} is not a store of this package")
    return answer


async def _fields(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    """(field, value) of each line; comments have the field "". Lines may be of any length."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                name, _, value = line.decode().partition(":")
                yield name, value.strip()
