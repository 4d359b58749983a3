"""A store in memory, a stub of OpenAI's API, and a tracer that is set up on both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import agentlightning as agl
from agentlightning.projections.store.memory_store import InMemoryLightningStore

from ..openai_stub import Stub, openai_stub


@pytest.fixture(scope="session")
def stub() -> Iterator[Stub]:
    """One stub for all tests: it answers always the same."""
    with openai_stub() as server:
        yield server


@pytest.fixture
def store() -> Iterator[InMemoryLightningStore]:
    """A fresh store."""
    opened = InMemoryLightningStore()
    yield opened
    opened.close()


@pytest.fixture
def tracer(store: InMemoryLightningStore) -> Iterator[agl.OtelTracer]:
    """A tracer whose worker runs on the store."""
    made = agl.OtelTracer()
    made.init()
    made.init_worker(0, store)
    yield made
    made.teardown_worker(0)
    made.teardown()
