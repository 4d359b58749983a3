"""What a runner says of heartbeats that do not arrive."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from agentlightning.projections.memory_store import InMemoryLightningStore
from agentlightning.runners.heartbeat import Heartbeat, Life


async def test_a_store_that_never_answered_is_no_news_of_the_heartbeat_and_one_that_stops_is(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Quiet:
        capabilities = store.capabilities
        answers = False

        async def update_worker(self, *args: Any, **kwargs: Any) -> Any:
            if not self.answers:
                raise asyncio.TimeoutError
            return await store.update_worker(*args, **kwargs)

    quiet: Any = Quiet()
    beat = Heartbeat(quiet, [Life("Worker-0", "i", list)], interval=0.01, jitter=0.0, mode="asyncio")
    with caplog.at_level(logging.INFO):
        beat.start()
        await asyncio.sleep(0.1)
        assert "Heartbeat" not in caplog.text
        quiet.answers = True
        await asyncio.sleep(0.1)
        quiet.answers = False
        await asyncio.sleep(0.1)
        await beat.stop()
    said = [record.getMessage() for record in caplog.records if "Heartbeat" in record.getMessage()]
    assert said == ["Heartbeat of Worker-0 failed: the store does not answer"]
