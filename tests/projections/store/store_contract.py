"""The contract of every store: one abstract class of tests, run on each log and through each door.

A subclass gives the fixtures `store` (a new, empty store on `clock`) and, where the store is not an `EventLogStore`
itself, `engine`: the engine behind it, so that time can pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.projections.store.engine import Engine

from .contract_attempts import AttemptContract
from .contract_queue import QueueContract
from .contract_reading import ReadingContract
from .contract_resources import CatalogueContract
from .contract_spans import SpanContract
from .tools import PassTime, pass_time


class StoreContract(QueueContract, AttemptContract, SpanContract, CatalogueContract, ReadingContract, ABC):
    """Every rule of the interface that a caller can see."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The store's clock, which stands until a test lets time pass."""
        return ManualClock()

    @pytest.fixture
    @abstractmethod
    async def store(self, clock: ManualClock, tmp_path: Any) -> AsyncIterator[agl.LightningStore]:
        """A new store, closed afterwards."""
        raise NotImplementedError
        yield

    @pytest.fixture
    def engine(self, store: Any) -> Engine:
        """The engine behind the store."""
        return store.engine

    @pytest.fixture
    def passing(self, engine: Engine, clock: ManualClock) -> PassTime:
        """`await passing(seconds)`: time passes, and what is due happens."""

        async def passing(seconds: float) -> None:
            await pass_time(engine, clock, seconds)

        return passing
