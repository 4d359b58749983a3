"""The contract through the HTTP door: a client of a server that runs in a thread of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.engine import Engine
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.open_store import open_store
from agentlightning.rest.server.server import LightningStoreServer

from .store_contract import StoreContract

PATIENT = StoreSettings(claim_confirm_seconds=1e6)
"""The client confirms its claims on the machine's clock, the store waits for that on the test's."""


class TestHttpStore(StoreContract):
    @pytest.fixture
    def behind(self, clock: ManualClock, tmp_path: Path) -> EventLogStore:
        """The store that is served."""
        store = open_store("memory://", clock=clock, settings=PATIENT)
        assert isinstance(store, EventLogStore)
        return store

    @pytest.fixture
    async def store(self, behind: EventLogStore) -> AsyncIterator[agl.LightningStore]:  # type: ignore[override]
        server = LightningStoreServer(behind, port=0, launch_mode="thread")
        await server.start()
        client = LightningStoreClient(server.endpoint)
        yield client
        await client.close()
        await server.stop()
        behind.close()

    @pytest.fixture
    def engine(self, behind: EventLogStore) -> Engine:  # type: ignore[override]
        return behind.engine
