"""AgentOpsTracer: the tutorial's tracer works without its SDK, says so once, and claims nothing that did not happen."""

from __future__ import annotations

import builtins
import importlib.util
import logging
import sys
from pathlib import Path

import pytest

import agentlightning as agl
from agentlightning.projections.memory_store import InMemoryLightningStore


async def test_without_the_sdk_it_says_so_once_and_records_the_same(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "agentops", None)  # importing it raises ImportError
    tracer = agl.AgentOpsTracer(agentops_managed=True, instrument_managed=True, daemon=True)
    await store.add_resources({"prompt": "Say {x}"})
    for _ in range(2):
        rollout = await store.enqueue_rollout("task")
        runner = agl.LitAgentRunner[str](tracer=tracer, max_rollouts=1)
        with runner.run_context(agent=lambda task: 0.5, store=store):
            await runner.iter()
        names = [span.name for span in await store.query_spans(rollout.rollout_id)]
        assert names == [f"{rollout.rollout_id}.session", "agentlightning.annotation"]
    lines = [record.getMessage() for record in caplog.records]
    assert sum("AgentOps SDK is not installed" in line for line in lines) == 1
    assert not [line for line in lines if "client initialized" in line]
    assert lines[:2] == ["[Worker 0] Setting up tracer...", "[Worker 0] Instrumentation applied."]


@pytest.mark.skipif(importlib.util.find_spec("agentops") is None, reason="the extra is not installed")
async def test_with_the_sdk_nothing_leaves_the_process(
    store: InMemoryLightningStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printing = builtins.print
    seen: list[object] = []
    watching = [True]

    def watch(event: str, args: tuple[object, ...]) -> None:
        if watching[0] and event in ("socket.connect", "socket.getaddrinfo"):
            seen.append(args)

    sys.addaudithook(watch)
    tracer = agl.AgentOpsTracer()
    tracer.init_worker(0, store)
    rollout = await store.start_rollout("x")
    async with tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id):
        agl.emit_reward(1.0)
    watching[0] = False
    assert seen == []
    assert builtins.print is printing and list(tmp_path.iterdir()) == [], "no print and no log file of its own"
    assert agl.find_final_reward(await store.query_spans(rollout.rollout_id)) == 1.0
