"""Waiting out a store that does not answer: a runner outlives restarts of its store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .errors import Rebuilding, StoreUnreachable

__all__ = ["patiently"]

R = TypeVar("R")

_log = logging.getLogger(__name__)
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0


async def patiently(call: Callable[[], Awaitable[R]], what: str) -> R:
    """Await ``call()`` again and again while the store is unreachable or folds its log anew; other errors go on.

    Says so once when the waiting begins and once when it is over.
    """
    pause = _FIRST_PAUSE
    waiting = False
    while True:
        try:
            result = await call()
        except (StoreUnreachable, Rebuilding) as error:
            if not waiting:
                _log.warning("%s: the store does not answer, waiting for it (%s)", what, error)
                waiting = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        else:
            if waiting:
                _log.info("%s: the store answers again.", what)
            return result
