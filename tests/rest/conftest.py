"""A served store for the tests of the HTTP door: in memory and on a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from agentlightning.core.contract import LightningStore
from agentlightning.projections.rest.client import LightningStoreClient
from agentlightning.projections.rest.server import LightningStoreServer
from agentlightning.projections.store import EventLogStore, open_store


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LightningStore]:
    opened = open_store("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/log.db")
    assert isinstance(opened, EventLogStore)
    yield opened
    opened.close()


@pytest.fixture
async def server(store: LightningStore) -> AsyncIterator[LightningStoreServer]:
    served = LightningStoreServer(store, port=0)
    await served.start()
    yield served
    await served.stop()


@pytest.fixture
async def client(server: LightningStoreServer) -> AsyncIterator[LightningStoreClient]:
    made = LightningStoreClient(server.endpoint)
    yield made
    await made.close()


@pytest.fixture
async def http(server: LightningStoreServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.endpoint) as session:
        yield session
