"""The store's contract, unchanged, on a log that a real broker keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store
from tests.projections.store.store_contract import StoreContract

from .test_kafka_log import make_topics


class TestKafkaStore(StoreContract):
    @pytest.fixture
    async def store(self, clock: ManualClock, kafka_url: str) -> AsyncIterator[agl.LightningStore]:  # type: ignore[override]
        await asyncio.to_thread(make_topics, kafka_url)
        store: Any = await asyncio.to_thread(open_store, kafka_url, clock=clock)
        assert isinstance(store, EventLogStore)
        yield store
        await asyncio.to_thread(store.close)
