"""Hooks are called in the documented order, whatever becomes of the attempt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.projections.store.memory_store import InMemoryLightningStore

from ..support import PROMPT


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


class Looks(agl.Hook):
    """Looks at the trace where it ends, and says so in it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.calls: list[str] = []

    async def on_rollout_start(self, **_: Any) -> None:
        self.calls.append("start")

    async def on_trace_end(self, *, tracer: Any, **_: Any) -> None:
        self.seen = [str(agl.get_message_value(span)) for span in tracer.get_last_trace()]

    async def on_rollout_end(self, **_: Any) -> None:
        self.calls.append("end")


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_agents_and_hooks_see_the_whole_trace_before_the_store_has_it(
    store: InMemoryLightningStore, asynchronous: bool
) -> None:
    def agent(task: str) -> float | None:
        for number in range(3):
            agl.emit_message(f"message {number}")
        agl.emit_reward(0.25)
        tracer = agl.get_active_tracer()
        assert tracer is not None and agl.find_final_reward(tracer.get_last_trace()) == 0.25
        return None

    async def async_agent(task: str) -> float | None:
        return agent(task)

    hook = Looks()
    runner = agl.LitAgentRunner[str](tracer=agl.OtelTracer())
    with runner.run_context(agent=async_agent if asynchronous else agent, store=store, hooks=[hook]):
        rollout = await runner.step("task", resources=PROMPT)
    assert rollout.status == "succeeded"
    assert hook.seen == ["message 0", "message 1", "message 2", "None"]


async def test_a_rollout_without_resources_begins_and_ends_for_no_hook(store: InMemoryLightningStore) -> None:
    hook = Looks()
    runner = agl.LitAgentRunner[str](tracer=agl.OtelTracer())
    with runner.run_context(agent=lambda task, prompt_template: 1.0, store=store, hooks=[hook]):
        with pytest.raises(RuntimeError, match="Failed to fetch resources"):
            await runner.step("task")
        assert hook.calls == []
        await runner.step("task", resources=PROMPT)
    assert hook.calls == ["start", "end"]


class Exits(agl.Hook):
    """Wants to end the process."""

    async def on_trace_start(self, **_: Any) -> None:
        raise SystemExit(3)


async def test_a_hook_that_exits_changes_nothing(store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture) -> None:
    runner = agl.LitAgentRunner[str](tracer=agl.OtelTracer())
    with runner.run_context(agent=lambda task: 1.0, store=store, hooks=[Exits()]):
        rollout = await runner.step("task", resources=PROMPT)
    assert rollout.status == "succeeded" and "Exception during on_trace_start hook" in caplog.text
