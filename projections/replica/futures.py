"""How results get from the log's threads to the event loops that wait for them, many at a time."""

from __future__ import annotations

import asyncio
from typing import Any

Slot = tuple["asyncio.Future[Any]", Any, bool]


def _settle(slots: list[Slot]) -> None:
    for future, value, failed in slots:
        if not future.done():
            if failed:
                future.set_exception(value)
            else:
                future.set_result(value)


class Delivery:
    """Collects settled futures and hands them over with one wake-up a loop. Not thread-safe: use it under a lock."""

    def __init__(self) -> None:
        self._by_loop: dict[asyncio.AbstractEventLoop, list[Slot]] = {}

    def put(self, future: asyncio.Future[Any], value: Any, failed: bool = False) -> None:
        """Settle `future` at the next `flush`."""
        loop = future.get_loop()
        slots = self._by_loop.get(loop)
        if slots is None:
            slots = self._by_loop[loop] = []
        slots.append((future, value, failed))

    def flush(self) -> None:
        """Wake the loops. A loop that was closed meanwhile has nobody left who waits."""
        if not self._by_loop:
            return
        ready, self._by_loop = self._by_loop, {}
        for loop, slots in ready.items():
            try:
                loop.call_soon_threadsafe(_settle, slots)
            except RuntimeError:
                if not loop.is_closed():
                    raise
