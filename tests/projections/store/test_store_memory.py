"""The contract on the memory log: InMemoryLightningStore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.projections.store.memory_store import InMemoryLightningStore

from .store_contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    async def store(self, clock: ManualClock, tmp_path: Any) -> AsyncIterator[agl.LightningStore]:
        with InMemoryLightningStore(clock=clock) as store:
            yield store


def test_capabilities_are_those_of_the_older_store() -> None:
    for thread_safe in (False, True):
        with InMemoryLightningStore(thread_safe=thread_safe) as store:
            told = store.capabilities
            assert told.get("thread_safe") is thread_safe and told.get("async_safe") is True
            assert told.get("zero_copy") is False and told.get("otlp_traces") is False
            with pytest.raises(NotImplementedError):
                store.otlp_traces_endpoint()


@pytest.mark.parametrize(
    ("eviction", "safe"), [(0.0, None), (1.5, None), (0, None), (0.5, 0.5), (100, 100), (0.5, -0.1), (100, 200)]
)
def test_impossible_thresholds_are_refused(eviction: float, safe: float | None) -> None:
    with pytest.raises(ValueError):
        InMemoryLightningStore(eviction_memory_threshold=eviction, safe_memory_threshold=safe)


@pytest.mark.parametrize(
    ("eviction", "safe"), [(None, 0.7), (None, 0.9), (100, 0.9), (0.5, 2**60), ("x", None), (None, "x"), (None, -1)]
)
def test_thresholds_are_compared_whatever_unit_they_come_in(eviction: Any, safe: Any) -> None:
    with pytest.raises(ValueError):
        InMemoryLightningStore(eviction_memory_threshold=eviction, safe_memory_threshold=safe)
    InMemoryLightningStore(eviction_memory_threshold=0.9, safe_memory_threshold=1000).close()


async def test_through_the_threaded_store_a_waiting_dequeue_keeps_nobody_waiting() -> None:
    with InMemoryLightningStore() as inner:
        store = agl.LightningStoreThreaded(inner)
        waiting = asyncio.ensure_future(store.dequeue_rollout(wait_seconds=30))
        await asyncio.sleep(0.02)
        made = await asyncio.wait_for(store.enqueue_rollout("x"), 2)
        claimed = await asyncio.wait_for(waiting, 2)
        assert claimed is not None and claimed.rollout_id == made.rollout_id
        with pytest.raises(ValueError):
            await store.wait_for_rollouts(made.rollout_id, timeout=0)
