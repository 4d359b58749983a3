"""A served store for the tests of the HTTP door: in memory and on a file; client and server also under uvloop."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agentlightning.core.model.store_interface import LightningStore
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.open_store import open_store
from agentlightning.rest.server.server import LightningStoreServer, PythonServerLauncherArgs

UNDER_BOTH = ("test_client.py", "test_server.py", "test_uvicorn_runner.py")
"""The modules in which a client or the server meets transports."""


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """Also under uvloop, whose transports are none of asyncio's classes; once, on the store in memory, is enough."""
    factories: dict[str, Any] = {"asyncio": asyncio.new_event_loop}
    if item.path.name in UNDER_BOTH and importlib.util.find_spec("uvloop"):
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out uvloop on a file: what differs between the loops is in front of the store."""
    items[:] = [item for item in items if not ("uvloop" in item.name and "sqlite" in item.name)]


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LightningStore]:
    opened = open_store("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/log.db")
    assert isinstance(opened, EventLogStore)
    yield opened
    opened.close()


@pytest.fixture
async def server(store: LightningStore) -> AsyncIterator[LightningStoreServer]:
    # In the test's own loop where that is uvloop: a server in a thread has asyncio's.
    own = not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)
    launch = PythonServerLauncherArgs(port=0, launch_mode="asyncio" if own else "thread")
    served = LightningStoreServer(store, launcher_args=launch)
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
