"""Agents with bad luck: each costs its own attempt and nothing else, and the log says what happened."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.runners.worker import agent_call
from agentlightning.runners.worker import attempt as attempt_module

from ..support import attempt_of, run_two, told


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(
    "raised",
    [ValueError("no luck"), SystemExit(3), StopIteration("x"), asyncio.CancelledError("x"), BaseException("x")],
)
async def test_whatever_an_agent_raises_is_in_the_log_with_its_traceback(
    store: InMemoryLightningStore, raised: BaseException, asynchronous: bool
) -> None:
    def sync_agent(task: str) -> float:
        if task == "bad":
            raise raised
        return 1.0

    async def async_agent(task: str) -> float:
        return sync_agent(task)

    attempt, spans, _ = await run_two(store, async_agent if asynchronous else sync_agent)
    assert attempt.status == "failed"
    if asynchronous and isinstance(raised, asyncio.CancelledError):
        assert "cancelled from inside" in told(spans)["message"]
    else:
        assert type(raised).__name__ in told(spans)["stacktrace"] and "in sync_agent" in told(spans)["stacktrace"]


async def test_a_huge_error_does_not_go_into_the_control_log(store: InMemoryLightningStore) -> None:
    def agent(task: str) -> float:
        if task == "bad":
            raise ValueError("x" * 3_000_000)
        return 1.0

    attempt, spans, _ = await run_two(store, agent)
    assert len(attempt.metadata["error"]) == 2000 and len(told(spans)["message"]) == 3_000_000


@pytest.mark.parametrize("value", ["text", {"a": 1}, [1, "x"], object(), b"x", ("a",)])
async def test_a_wrong_result_is_a_failure_with_its_type_in_the_log(store: InMemoryLightningStore, value: Any) -> None:
    attempt, spans, _ = await run_two(store, lambda task: value if task == "bad" else 1.0)
    assert attempt.status == "failed"
    assert told(spans)["type"] in ("TypeError", "InvalidInput") and "but got" in told(spans)["message"]
    assert agl.find_final_reward(spans) is None


async def test_missing_resources_are_in_the_log_too(store: InMemoryLightningStore) -> None:
    rollout = await store.enqueue_rollout("task", resources_id="rs-none")
    runner = agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=1)
    with runner.run_context(agent=lambda task: 1.0, store=store):
        await runner.iter()
    attempt, spans = await attempt_of(store, rollout)
    assert attempt.status == "failed" and "Failed to fetch resources: rs-none" in told(spans)["message"]


async def test_an_agent_that_hangs_in_its_thread_is_given_up_and_counted(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    beats: list[Any] = []
    update = store.update_worker

    async def watched(worker_id: str, stats: Any, **kwargs: Any) -> Any:
        beats.append(stats)
        return await update(worker_id, stats, **kwargs)

    store.update_worker = watched  # type: ignore[method-assign]

    def agent(task: str) -> float:
        if task == "bad":
            release.wait(30)
            agl.emit_message("too late")
            print("too late")
        elif not any("agents_given_up" in beat for beat in beats):
            time.sleep(0.2)
        return 1.0

    attempt, spans, runner = await run_two(store, agent, timeout_seconds=0.5, heartbeat_interval=0.05)
    release.set()
    assert attempt.status == "timeout" and "ran longer than the 0.5 s" in told(spans)["message"]
    assert "release.wait(30)" in told(spans)["stacktrace"] and "(test_bad_luck.py, line " in caplog.text
    assert runner.given_up == 1 and "given up; 1 so far" in caplog.text
    assert beats[-1]["agents_given_up"] == 1
    await asyncio.sleep(0.1)
    assert not [span for span in await store.query_spans(attempt.rollout_id) if span.name == "agentlightning.message"]


async def test_the_time_limit_reaches_an_asynchronous_agent(store: InMemoryLightningStore) -> None:
    cleaned: list[str] = []

    async def agent(task: str) -> float:
        try:
            await asyncio.sleep(30 if task == "bad" else 0)
        except asyncio.CancelledError:
            cleaned.append(task)
            raise
        return 1.0

    attempt, spans, runner = await run_two(store, agent, timeout_seconds=0.3)
    assert attempt.status == "timeout" and cleaned == ["bad"] and runner.given_up == 0
    assert told(spans)["type"] == "AttemptTimedOut"
    assert 'await asyncio.sleep(30 if task == "bad" else 0)' in told(spans)["stacktrace"]


async def test_a_rollout_that_is_cancelled_in_the_store_reaches_its_agent(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "LOOK_SECONDS", 0.05)
    cleaned: list[str] = []

    async def agent(task: str, rollout: Any) -> float:
        if task == "bad":
            await store.update_rollout(rollout.rollout_id, status="cancelled")
        try:
            await asyncio.sleep(30 if task == "bad" else 0.2)
        except asyncio.CancelledError:
            cleaned.append(task)
            raise
        return 1.0

    attempt, spans, runner = await run_two(store, agent)
    assert attempt.status == "failed" and told(spans)["type"] == "RolloutCancelled"
    assert cleaned == ["bad"] and runner.given_up == 0
    rollout = await store.get_rollout_by_id(attempt.rollout_id)
    assert rollout is not None and rollout.status == "cancelled"


async def test_an_agent_that_swallows_its_cancellation_is_given_up(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_call, "CANCEL_SECONDS", 0.2)
    over = asyncio.Event()

    async def agent(task: str) -> float:
        while task == "bad" and not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue
        return 1.0

    attempt, _, runner = await run_two(store, agent, timeout_seconds=0.3)
    over.set()
    assert attempt.status == "timeout" and runner.given_up == 1


@pytest.mark.parametrize("method", ["stop", "close"])
async def test_an_agent_cannot_end_the_loop_of_its_runner(store: InMemoryLightningStore, method: str) -> None:
    async def agent(task: str) -> float:
        if task == "bad":
            getattr(asyncio.get_running_loop(), method)()
            await asyncio.sleep(0)
        return 1.0

    attempt, spans, _ = await run_two(store, agent)
    assert attempt.status == "failed" and told(spans)["type"] == "RuntimeError"


async def test_a_loop_that_a_synchronous_agent_made_and_closed_is_its_own(store: InMemoryLightningStore) -> None:
    def agent(task: str) -> float:
        loop = asyncio.new_event_loop()
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
        return 1.0

    assert (await run_two(store, agent))[0].status == "succeeded"


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_forked_copy_does_not_go_on_as_a_second_runner(asynchronous: bool) -> None:
    """In a process of its own: pytest must not be forked."""
    program = f"""
import asyncio, os
import agentlightning as agl
def body(task):
    if task == "bad" and os.fork() == 0:
        return 0.25
    return 1.0
async def coroutine(task):
    return body(task)
async def main():
    store = agl.InMemoryLightningStore()
    await store.add_resources({{"prompt": "x"}})
    for task in ("bad", "good"):
        await store.enqueue_rollout(task)
    runner = agl.LitAgentRunner(tracer=agl.OtelTracer(), max_rollouts=2)
    with runner.run_context(agent={"coroutine" if asynchronous else "body"}, store=store):
        await runner.iter()
    print(os.getpid(), sorted(r.status for r in await store.query_rollouts()), flush=True)
    store.close()
print(os.getpid(), flush=True)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    first, second = done.stdout.splitlines()
    assert second == f"{first} ['succeeded', 'succeeded']", done.stderr


@pytest.mark.parametrize("limits", [(0.0, 1000.0), (1000.0, 0.0)])
def test_an_attempt_that_blocks_the_event_loop_is_noticed_beside_another(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    for name, seconds in (("CANCEL_SECONDS", 0.0), ("STUCK_SECONDS", 0.0), ("_CHECK_SECONDS", 0.01)):
        monkeypatch.setattr(agent_call, name, seconds)
    stuck: list[str] = []
    noticed = threading.Event()
    given_up = agent_call.Watchdog(lambda: None, lambda prefix: (stuck.append(prefix), noticed.set()))  # pyright: ignore[reportArgumentType]
    outer, inner = limits
    with given_up.watched(outer, f"limit {outer:g}"), given_up.watched(inner, f"limit {inner:g}"):
        assert noticed.wait(3) and stuck == ["limit 0"]
        assert "limit 0 The event loop is blocked here" in caplog.text and "noticed.wait(3)" in caplog.text
