"""Waiting for outcomes: one awaitable a call, resolved by the fold's own facts, no polling and no timer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ..replica.command_context import Delivery


class _Waiter:
    __slots__ = ("future", "missing")

    def __init__(self, future: asyncio.Future[None], missing: set[str]) -> None:
        self.future = future
        self.missing = missing


class CompletionWaiters:
    """Who waits for which rollouts. Use under the node's lock."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._by_rollout: dict[str, list[_Waiter]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, missing: Iterable[str]) -> asyncio.Future[None]:
        """A future that is resolved when all of `missing` have completed."""
        waiter = _Waiter(loop.create_future(), set(missing))
        for rollout_id in waiter.missing:
            self._by_rollout.setdefault(rollout_id, []).append(waiter)
        return waiter.future

    def remove(self, future: asyncio.Future[None], missing: Iterable[str]) -> None:
        """Forget a waiter that gave up."""
        for rollout_id in missing:
            waiters = self._by_rollout.get(rollout_id)
            if waiters is not None:
                waiters[:] = [waiter for waiter in waiters if waiter.future is not future]
                if not waiters:
                    del self._by_rollout[rollout_id]

    def completed(self, rollout_id: str) -> None:
        """A rollout has its outcome."""
        for waiter in self._by_rollout.pop(rollout_id, ()):
            waiter.missing.discard(rollout_id)
            if not waiter.missing:
                self._delivery.put(waiter.future, None)

    def fail(self, error: Exception) -> None:
        """Nothing will complete any more: everybody gets `error`."""
        for waiters in self._by_rollout.values():
            for waiter in waiters:
                self._delivery.put(waiter.future, error, True)
        self._by_rollout.clear()

    def __len__(self) -> int:
        return len({id(waiter) for waiters in self._by_rollout.values() for waiter in waiters})
