"""Dispatch: which claimable rollout a claimer is offered, and who is woken when one appears.

The fold's queue is the truth; this is one node's view of it, first in first out, in which a rollout that is being
claimed is not offered twice. Use under the node's lock.
"""

from __future__ import annotations

import asyncio
from collections import deque

from ..core.state import State
from .delivery import Delivery


class Dispatch:
    """Hands out claimable rollouts and wakes idle claimers, oldest first."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._ready: deque[str] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()

    def load(self, state: State) -> None:
        """Start with what the log says is claimable."""
        self._ready = deque(state.queue)

    def offer(self, rollout_id: str) -> None:
        """A rollout became claimable: remember it and wake the one who waits longest."""
        self._ready.append(rollout_id)
        self._wake_one()

    def _wake_one(self) -> None:
        while self._idle:
            future = self._idle.popleft()
            if not future.done():
                self._delivery.put(future, None)
                return

    def take(self, state: State) -> str | None:
        """The oldest rollout that is still claimable and not being claimed by this node; None when there is none."""
        ready = self._ready
        while ready:
            rollout_id = ready.popleft()
            if rollout_id in state.queue:
                return rollout_id
        return None

    def give_back(self, state: State, rollout_id: str) -> None:
        """A claim came to nothing: offer the rollout again, first, if it is still claimable."""
        if rollout_id in state.queue:
            self._ready.appendleft(rollout_id)
            self._wake_one()

    def fail(self, error: Exception) -> None:
        """No work will come any more: everybody who waits gets `error`."""
        while self._idle:
            self._delivery.put(self._idle.popleft(), error, True)

    def wait(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """A future that is resolved when it is this claimer's turn to try again; cancel it to stop waiting."""
        future: asyncio.Future[None] = loop.create_future()
        self._idle.append(future)
        if len(self._idle) > 64 and self._idle[0].done():
            self._idle = deque(one for one in self._idle if not one.done())
        return future

    def pass_on(self) -> None:
        """Somebody was woken and did not claim (gave up, was cancelled): wake the next, if there is work."""
        if self._ready:
            self._wake_one()
