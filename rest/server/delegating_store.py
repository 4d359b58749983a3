"""LightningStoreThreaded: makes a store that is not thread-safe usable from several threads."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ...core.model.rollout import Fact, Rollout
from ...core.model.store_interface import DelegatingStore, LightningStore, LightningStoreCapabilities
from ...projections.store.store import EventLogStore

PAUSE_SECONDS = 0.002


class LightningStoreThreaded(DelegatingStore):
    """Passes every call on to `store`: as it is where the store is thread-safe, else one call at a time.

    Waiting for a turn never blocks an event loop, and `wait_for_rollouts` takes no turn.
    """

    def __init__(self, store: LightningStore) -> None:
        self.store = store
        self._turn = threading.Lock()

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return {**self.store.capabilities, "thread_safe": True, "async_safe": True}

    def otlp_traces_endpoint(self) -> str:
        return self.store.otlp_traces_endpoint()

    async def wait_for_rollouts(self, rollout_ids: Sequence[str], timeout: float | None = None) -> list[Rollout]:
        return await self.store.wait_for_rollouts(rollout_ids=rollout_ids, timeout=timeout)

    def subscribe(self, types: Sequence[str] | None = None, *, since: int | None = None) -> AsyncIterator[Fact]:
        return self.store.subscribe(types, since=since)

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self.store, name)
        # Ours is safe whatever it tells those who count on the older one's words; and a dequeue that waits would keep
        # its turn from the enqueue that it waits for.
        if isinstance(self.store, EventLogStore) or self.store.capabilities.get("thread_safe", False):
            return await method(*args, **kwargs)
        # The lock is held across the await, so a caller that wants it must not block: the holder may need the same loop.
        while not self._turn.acquire(blocking=False):
            await asyncio.sleep(PAUSE_SECONDS)
        try:
            result = method(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result
        finally:
            self._turn.release()
