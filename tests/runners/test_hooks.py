"""Hooks are called in the documented order, whatever becomes of the attempt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.projections.memory_store import InMemoryLightningStore

from .support import PROMPT


class Order(agl.Hook):
    """Notes its calls, and what the store knew at the last one."""

    def __init__(self, store: InMemoryLightningStore, calls: list[str]) -> None:
        super().__init__()
        self.store = store
        self.calls = calls

    async def on_rollout_start(self, **_: Any) -> None:
        self.calls.append("rollout start")

    async def on_trace_start(self, **_: Any) -> None:
        self.calls.append("trace start")
        agl.emit_message("recorded before the agent")

    async def on_trace_end(self, **_: Any) -> None:
        self.calls.append("trace end")

    async def on_rollout_end(self, *, rollout: Any, spans: Any, **_: Any) -> None:
        attempt = await self.store.get_latest_attempt(rollout.rollout_id)
        assert attempt is not None
        self.calls.append(f"rollout end: {attempt.status}")
        assert agl.get_message_value(spans[0]) == "recorded before the agent"


@pytest.mark.parametrize("ending", ["succeeded", "failed", "cancelled"])
async def test_the_order_is_the_same_however_the_attempt_ends(store: InMemoryLightningStore, ending: str) -> None:
    calls: list[str] = []

    async def agent(task: str) -> float:
        calls.append("agent")
        if ending == "failed":
            raise ValueError
        if ending == "cancelled":
            running.cancel()
            await asyncio.sleep(30)
        return 1.0

    await store.add_resources(PROMPT)
    await store.enqueue_rollout("task")
    runner = agl.LitAgentRunner[str](tracer=agl.OtelTracer(), max_rollouts=1)
    with runner.run_context(agent=agent, store=store, hooks=[Order(store, calls)]):
        running = asyncio.create_task(runner.iter())
        await asyncio.wait({running})
    assert running.cancelled() == (ending == "cancelled")
    status = "succeeded" if ending == "succeeded" else "failed"
    assert calls == ["rollout start", "trace start", "agent", "trace end", f"rollout end: {status}"]
