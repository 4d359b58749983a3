"""Retries: how long to wait before the next try, and calls that are repeated while their store does not answer."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from .errors import Rebuilding, StoreUnreachable

__all__ = ["CALL_BACKOFF", "PROCESS_BACKOFF", "WAIT_BACKOFF", "Backoff", "Retry", "patiently"]

R = TypeVar("R")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backoff:
    """Delays that double from `first_seconds` up to `longest_seconds`, without end."""

    first_seconds: float
    longest_seconds: float

    def delay(self, number: int) -> float:
        """Seconds before the next try, after `number` failures (1, 2, ...)."""
        return min(self.first_seconds * 2 ** min(number - 1, 30), self.longest_seconds)

    def __iter__(self) -> Iterator[float]:
        number = 0
        while True:
            number += 1
            yield self.delay(number)


CALL_BACKOFF = Backoff(0.05, 1.0)
"""Of one call over HTTP: a server that restarts is back within a second, and a caller waits at most one more."""
WAIT_BACKOFF = Backoff(0.2, 5.0)
"""Of what runs in the background (a runner's loop, spans, heartbeats): the client has retried for its own time before."""
PROCESS_BACKOFF = Backoff(0.25, 30.0)
"""Of worker processes that end soon after their start: a start costs about a second of CPU, so 30 s keep it below 5 %."""


class Retry:
    """Repeats a call that gets no answer from its store; logs once when the wait begins and once when it is over.

    `delays`: seconds before each further try; after the last try, and `limit_seconds` after the first failure, it gives
    up. `healthy`: asked after each failure; False gives up at once. One object serves all callers of one store.
    """

    def __init__(
        self,
        store: str,
        delays: Iterable[float] = WAIT_BACKOFF,
        *,
        limit_seconds: float = math.inf,
        healthy: Callable[[], Awaitable[bool]] | None = None,
        prefix: str = "",
        logger: logging.Logger = _log,
    ) -> None:
        self._store = store
        self._delays = delays
        self._limit_seconds = limit_seconds
        self._healthy = healthy
        self._prefix = prefix
        self._log = logger
        self._waiting = False

    async def run(self, call: Callable[[], Awaitable[R]]) -> R:
        """The first answer. Raises `StoreUnreachable` when it gives up, and other errors at once."""
        began: float | None = None
        delays = iter(self._delays)
        while True:
            try:
                result = await call()
            except (StoreUnreachable, Rebuilding) as error:
                now = time.monotonic()
                began = now if began is None else began
                left = self._limit_seconds - (now - began)
                delay = next(delays, None)
                if left <= 0 or delay is None or not (self._healthy is None or await self._healthy()):
                    raise StoreUnreachable(f"{error} (waited {now - began:.0f} s)") from error
                if not self._waiting:
                    self._waiting = True
                    self._log.warning("%swaiting for %s (%s)", self._prefix, self._store, error)
            else:
                if self._waiting:
                    self._waiting = False
                    self._log.warning("%s%s answers again", self._prefix, self._store)
                return result
            await asyncio.sleep(min(delay, left))


async def patiently(call: Callable[[], Awaitable[R]], what: str) -> R:
    """Await ``call()`` again and again while the store is unreachable or folds its log anew; other errors go on."""
    return await Retry("the store", prefix=f"{what}: ").run(call)
