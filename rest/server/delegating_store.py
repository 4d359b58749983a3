"""Stores that pass every method of the contract on to another store."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from ...core.model.rollout import Fact, Rollout
from ...core.model.store_interface import LightningStore, LightningStoreCapabilities, LightningStoreStatistics
from ...projections.store.store import EventLogStore
from ..api.routes import METHODS


class Delegating(LightningStore):
    """Every asynchronous method of the contract calls :meth:`_pass_on`, unless a subclass defines it itself."""

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call method `name` of the store behind this one."""
        raise NotImplementedError(f"{type(self).__name__} does not say where {name} goes")


def _passing(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    original = getattr(LightningStore, name)

    @functools.wraps(original)
    async def method(self: Delegating, *args: Any, **kwargs: Any) -> Any:
        return await self._pass_on(name, *args, **kwargs)  # pyright: ignore[reportPrivateUsage]

    return method


for _name in (*METHODS, "add_otel_span", "decided"):
    if inspect.iscoroutinefunction(getattr(LightningStore, _name, None)):
        setattr(Delegating, _name, _passing(_name))


PAUSE_SECONDS = 0.002


class LightningStoreThreaded(Delegating):
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

    async def statistics(self) -> LightningStoreStatistics:
        return await self._pass_on("statistics")

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
        # The lock is held across the await, so whoever wants it must not block: the holder may need the same loop.
        while not self._turn.acquire(blocking=False):
            await asyncio.sleep(PAUSE_SECONDS)
        try:
            result = method(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result
        finally:
            self._turn.release()
