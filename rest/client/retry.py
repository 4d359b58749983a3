"""How long a client goes on when its store does not answer: by a list of delays, or by its patience."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ...core.errors import StoreUnreachable
from .batcher import Transient

T = TypeVar("T")

log = logging.getLogger("agentlightning.store.client")

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class Patience:
    """Repeats what failed without an answer for up to `seconds`, and says so in one line for all callers together."""

    def __init__(self, address: str, seconds: float) -> None:
        self._address = address
        self._seconds = seconds
        self._down = False

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The first answer. Raises `StoreUnreachable` when the patience is over, other errors at once."""
        pause = FIRST_PAUSE_SECONDS
        began: float | None = None
        while True:
            try:
                result = await attempt()
            except Transient as error:
                now = time.monotonic()
                began = now if began is None else began
                left = self._seconds - (now - began)
                if left <= 0:
                    raise StoreUnreachable(f"{error} (waited {now - began:.0f} s)") from error
                if not self._down:
                    self._down = True
                    log.warning("waiting for the store at %s", self._address)
            else:
                if self._down:
                    self._down = False
                    log.warning("the store at %s is there again", self._address)
                return result
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


class Delays:
    """Repeats after each of the given delays, as long as the store says in between that it is healthy."""

    def __init__(
        self, delays: Sequence[float], health_delays: Sequence[float], healthy: Callable[[], Awaitable[Any]]
    ) -> None:
        self._delays = tuple(delays)
        self._health_delays = tuple(health_delays)
        self._healthy = healthy

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The first answer. Raises `StoreUnreachable` after the last delay, other errors at once."""
        for delay in self._delays:
            try:
                return await attempt()
            except Transient as error:
                if not await self._is_healthy():
                    raise StoreUnreachable(str(error)) from error
            await asyncio.sleep(delay)
        try:
            return await attempt()
        except Transient as error:
            raise StoreUnreachable(str(error)) from error

    async def _is_healthy(self) -> bool:
        if not self._health_delays:
            return True
        for delay in (*self._health_delays, None):
            try:
                await self._healthy()
            except Transient:
                if delay is None:
                    return False
                await asyncio.sleep(delay)
            else:
                return True
        return False
