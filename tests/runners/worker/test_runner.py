"""The runner: what it claims, what it records of every ending, and what its logs say."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.errors import InvalidInput, StoreUnreachable, Unauthorized
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store

PROMPT = {"prompt": "Say {x}"}


def make(max_rollouts: int | None = None, **options: Any) -> agl.LitAgentRunner[Any]:
    return agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=max_rollouts, **options)


async def run_one(store: InMemoryLightningStore, agent: Any, **options: Any) -> Any:
    """The rollout after one pass of the runner."""
    await store.add_resources(PROMPT)
    rollout = await store.enqueue_rollout("task", **options)
    runner = make(max_rollouts=1)
    with runner.run_context(agent=agent, store=store):
        await runner.iter()
    return await store.get_rollout_by_id(rollout.rollout_id)


async def test_the_rest_of_a_trace_and_the_reward_after_it_are_stored_in_one_call(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    add = store.add_many_spans

    async def counted(spans: Any) -> Any:
        calls.append([span.name for span in spans])
        return await add(spans)

    def agent(task: str) -> float:
        agl.emit_message("done")
        return 0.5

    monkeypatch.setattr(store, "add_many_spans", counted)
    rollout = await run_one(store, agent)
    assert calls == [["agentlightning.message", "agentlightning.annotation"]]
    message, reward = await store.query_spans(rollout.rollout_id)
    assert reward.trace_id != message.trace_id and agl.get_reward_value(reward) == 0.5


@pytest.mark.parametrize("value", [0.95, 1])
async def test_a_returned_number_is_the_final_reward_in_log_hook_and_store(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    class Last(agl.Hook):
        spans: list[Any] = []

        async def on_rollout_end(self, *, spans: Any, rollout: Any, **_: Any) -> None:
            self.spans = spans
            attempt = await store.get_latest_attempt(rollout.rollout_id)
            assert attempt is not None and attempt.status == "succeeded"

    caplog.set_level(logging.INFO)
    await store.add_resources(PROMPT)
    rollout = await store.enqueue_rollout("task")
    runner, hook = make(max_rollouts=1), Last()
    with runner.run_context(agent=lambda task: value, store=store, hooks=[hook]):
        await runner.iter()
    spans = await store.query_spans(rollout.rollout_id)
    assert agl.find_final_reward(spans) == agl.find_final_reward(hook.spans) == value
    assert [span.sequence_id for span in spans] == [1]
    lines = [record.getMessage() for record in caplog.records]
    assert "[Worker 0] Setting up tracer..." in lines
    assert "[Worker 0] Instrumentation applied." in lines
    assert "[Worker 0] Started async rollouts (max: 1)." in lines
    assert "[Worker 0] Finished async rollouts. Processed 1 tasks." in lines
    (completed,) = [line for line in lines if "Completed" in line]
    assert completed.startswith(f"[Worker 0 | Rollout {rollout.rollout_id}] Completed in 0.")
    assert completed.endswith(f"s. Collected 1 span(s). Final reward: {float(value)}")
    assert ["Trace lint: no model call" in one.getMessage() for one in caplog.records if one.levelno > logging.INFO] == [True]


async def test_a_bool_is_a_reward_with_a_warning(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = await run_one(store, lambda task: True)
    assert rollout.status == "succeeded" and "Reward is not a number, got: bool" in caplog.text
    assert agl.find_final_reward(await store.query_spans(rollout.rollout_id)) == 1.0


@pytest.mark.parametrize("result", ["good", {"a": 1}, [1, 2]])
async def test_results_that_are_no_result_fail_the_attempt(store: InMemoryLightningStore, result: Any) -> None:
    assert (await run_one(store, lambda task: result)).status == "failed"


async def test_returned_spans_are_stored(store: InMemoryLightningStore) -> None:
    core = agl.emit_reward(0.5, propagate=False)
    rollout = await run_one(store, lambda task: [core])
    assert agl.find_final_reward(await store.query_spans(rollout.rollout_id)) == 0.5


async def test_spans_are_stored_before_the_attempt_ends(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    update = store.update_attempt

    async def watched(rollout_id: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(await store.query_spans(rollout_id)))
        return await update(rollout_id, *args, **kwargs)

    monkeypatch.setattr(store, "update_attempt", watched)

    def agent(task: Any) -> float:
        for number in range(600):
            agl.emit_message(str(number))
        return 1.0

    rollout = await run_one(store, agent)
    assert seen == [601]
    bodies = [agl.get_message_value(span) for span in await store.query_spans(rollout.rollout_id)]
    assert bodies[:600] == [str(number) for number in range(600)]


async def test_an_agent_that_raises_fails_with_its_exception_recorded(store: InMemoryLightningStore) -> None:
    ended: list[str] = []

    class Hooks(agl.Hook):
        async def on_trace_end(self, **_: Any) -> None:
            ended.append("trace")
            raise ValueError("a hook's error stays in the log")

        async def on_rollout_end(self, **_: Any) -> None:
            ended.append("rollout")

    def agent(task: Any) -> float:
        raise KeyError("nothing there")

    await store.add_resources(PROMPT)
    rollout = await store.enqueue_rollout("task")
    runner = make(max_rollouts=1)
    with runner.run_context(agent=agent, store=store, hooks=[Hooks()]):
        await runner.iter()
    attempt = await store.get_latest_attempt(rollout.rollout_id)
    assert attempt is not None and attempt.status == "failed"
    assert (attempt.metadata or {})["error"] == "KeyError: 'nothing there'"
    spans = await store.query_spans(rollout.rollout_id, name="agentlightning.exception")
    assert "in agent" in str(spans[0].attributes["exception.stacktrace"])
    assert ended == ["trace", "rollout"]


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_an_agent_that_exits_or_cancels_itself_does_not_take_the_runner_along(
    store: InMemoryLightningStore, asynchronous: bool
) -> None:
    async def coroutine(task: Any) -> None:
        if task == "cancel":
            raise asyncio.CancelledError
        raise SystemExit(3)

    def function(task: Any) -> None:
        if task == "cancel":
            raise asyncio.CancelledError
        raise SystemExit(3)

    await store.add_resources(PROMPT)
    rollouts = [await store.enqueue_rollout(task) for task in ("exit", "cancel")]
    runner = make(max_rollouts=2)
    with runner.run_context(agent=coroutine if asynchronous else function, store=store):
        await runner.iter()
    assert [(await store.query_rollouts([r.rollout_id]))[0].status for r in rollouts] == ["failed"] * 2


async def test_missing_resources_fail_the_attempt(store: InMemoryLightningStore) -> None:
    rollout = await store.enqueue_rollout("task", resources_id="rs-none")
    runner = make(max_rollouts=1)
    with runner.run_context(agent=lambda task: 1.0, store=store):
        await runner.iter()
    attempt = await store.get_latest_attempt(rollout.rollout_id)
    assert attempt is not None and attempt.status == "failed"
    assert "Failed to fetch resources" in (attempt.metadata or {})["error"]


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_cancelled_attempt_is_failed_and_says_so_in_one_line(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture, asynchronous: bool
) -> None:
    release = threading.Event()
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def coroutine(task: Any) -> None:
        started.set()
        await asyncio.sleep(60)

    def function(task: Any) -> None:
        loop.call_soon_threadsafe(started.set)
        release.wait(60)

    await store.add_resources(PROMPT)
    rollout = await store.enqueue_rollout("task")
    runner = make()
    with runner.run_context(agent=coroutine if asynchronous else function, store=store):
        running = asyncio.create_task(runner.iter())
        await asyncio.wait_for(started.wait(), 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    release.set()
    attempt = await store.get_latest_attempt(rollout.rollout_id)
    assert attempt is not None and attempt.status == "failed"
    assert (attempt.metadata or {})["cancelled"] is True
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(loud) == 1 and loud[0].exc_info is None and "Cancelled" in loud[0].getMessage()


async def test_a_synchronous_agent_does_not_block_the_loop(store: InMemoryLightningStore) -> None:
    here = threading.get_ident()
    ticks = 0

    def agent(task: Any) -> float:
        assert threading.get_ident() != here
        assert agl.get_active_tracer() is not None
        deadline = time.monotonic() + 10
        while ticks < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        return float(ticks >= 3) + asyncio.run(asyncio.sleep(0, 1.0))

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    rollout = await run_one(store, agent)
    ticking.cancel()
    assert agl.find_final_reward(await store.query_spans(rollout.rollout_id)) == 2.0


async def test_an_idle_runner_starts_queued_work_within_50_milliseconds(store: InMemoryLightningStore) -> None:
    started: list[float] = []
    await store.add_resources(PROMPT)
    runner = make(poll_interval=60.0)
    with runner.run_context(agent=lambda task: started.append(time.monotonic()), store=store):
        running = asyncio.create_task(runner.iter())
        delays: list[float] = []
        for _ in range(5):
            await asyncio.sleep(0.1)
            asked = time.monotonic()
            rollout = await store.enqueue_rollout("task")
            await store.wait_for_rollouts([rollout.rollout_id], timeout=10)
            delays.append(started[-1] - asked)
        running.cancel()
        await asyncio.wait({running})
    # The best of several: the promise is about the path, not about what else the machine does.
    assert min(delays) < 0.05


async def test_the_event_stops_an_idle_runner(store: InMemoryLightningStore) -> None:
    event = threading.Event()
    runner = make()
    with runner.run_context(agent=lambda task: 1.0, store=store):
        running = asyncio.create_task(runner.iter(event=event))
        await asyncio.sleep(0.05)
        event.set()
        await asyncio.wait_for(running, 5)


async def test_a_runner_that_is_idle_does_not_ask_a_store_without_runs_for_them(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    async def query_runs(*_: object, **__: object) -> Any:
        asked.append(None)
        raise NotImplementedError  # as the base class of stores does

    monkeypatch.setattr("agentlightning.runners.worker.runner.IDLE_SECONDS", 0.0)
    monkeypatch.setattr(store, "query_runs", query_runs)
    monkeypatch.setattr(type(store), "capabilities", property(lambda self: {"push_dequeue": False}))
    event = threading.Event()
    runner = make(poll_interval=0.01)
    with runner.run_context(agent=lambda task: 1.0, store=store):
        running = asyncio.create_task(runner.iter(event=event))
        await asyncio.sleep(0.1)
        event.set()
        await asyncio.wait_for(running, 5)
    assert asked == []


async def test_no_rollouts_are_none_and_none_is_unlimited(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    runner = make(max_rollouts=0)
    with runner.run_context(agent=lambda task: 1.0, store=store, worker_id=3):
        assert runner.get_worker_id() == "Worker-3"
        await runner.iter()
    assert "[Worker 3] Started async rollouts (max: 0)." in caplog.text
    assert runner.get_worker_id() == "Worker-Unknown"
    with pytest.raises(ValueError, match="Store not initialized"):
        runner.get_store()
    with pytest.raises(RuntimeError):
        runner.run()


async def test_step_returns_the_rollout_and_raises_what_the_agent_raised(store: InMemoryLightningStore) -> None:
    @agl.rollout
    async def agent(task: int, prompt_template: agl.PromptTemplate) -> float:
        return 1 / task

    runner = make()
    with runner.run_context(agent=agent, store=store):
        finished = await runner.step(2, resources=PROMPT, mode="train")  # type: ignore[arg-type]
        assert (finished.status, finished.mode) == ("succeeded", "train")
        assert agl.find_final_reward(await store.query_spans(finished.rollout_id)) == 0.5
        with pytest.raises(ZeroDivisionError):
            await runner.step(0)
    assert [rollout.status for rollout in await store.query_rollouts()] == ["succeeded", "failed"]


async def test_two_runners_in_one_process_do_not_mix_their_rollouts(store: InMemoryLightningStore) -> None:
    async def agent(task: int) -> float:
        agl.emit_message(str(task))
        await asyncio.sleep(0.01)
        return float(task)

    await store.add_resources(PROMPT)
    rollouts = [await store.enqueue_rollout(number) for number in range(8)]
    first, second = make(max_rollouts=4), make(max_rollouts=4)
    with first.run_context(agent=agent, store=store), second.run_context(agent=agent, store=store, worker_id=1):
        await asyncio.gather(first.iter(), second.iter())
    for number, rollout in enumerate(rollouts):
        spans = await store.query_spans(rollout.rollout_id)
        assert [agl.get_message_value(span) for span in spans][0] == str(number)
        assert agl.find_final_reward(spans) == number and len(spans) == 2


async def test_an_attempt_that_was_ended_elsewhere_breaks_nothing(store: InMemoryLightningStore) -> None:
    async def agent(task: str) -> float:
        if task == "task":
            rollout = (await store.query_rollouts())[0]
            await store.update_rollout(rollout.rollout_id, status="cancelled")
        return 1.0

    assert (await run_one(store, agent)).status == "cancelled"
    assert (await run_one(store, lambda task: 1.0)).status == "succeeded"


async def test_a_store_that_is_away_is_waited_for_and_a_wrong_token_is_not(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[Exception] = [StoreUnreachable("gone"), StoreUnreachable("gone")]

    def flaky(name: str) -> None:
        original = getattr(store, name)
        left = list(failures)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if left:
                raise left.pop()
            return await original(*args, **kwargs)

        monkeypatch.setattr(store, name, call)

    for name in ("dequeue_rollout", "get_resources_by_id", "add_many_spans", "update_attempt"):
        flaky(name)
    assert (await run_one(store, lambda task: 1.0)).status == "succeeded"
    assert caplog.text.count("waiting for the store") >= 4

    failures = [Unauthorized("wrong token")]
    flaky("dequeue_rollout")
    runner = make()
    with runner.run_context(agent=lambda task: 1.0, store=store), pytest.raises(Unauthorized):
        await runner.iter()


async def test_a_store_without_push_is_polled(store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    dequeue = store.dequeue_rollout

    async def plain(worker_id: str | None = None, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return await dequeue(worker_id) if len(asked) > 2 else None

    monkeypatch.setattr(store, "dequeue_rollout", plain)
    monkeypatch.setattr(type(store), "capabilities", property(lambda self: {}))
    await store.add_resources(PROMPT)
    await store.enqueue_rollout("task")
    runner = make(max_rollouts=1, poll_interval=0.01, interval_jitter=0.0)
    with runner.run_context(agent=lambda task: 1.0, store=store):
        await runner.iter()
    assert asked == [{}, {}, {}]


def test_an_address_is_no_store() -> None:
    address: Any = "http://127.0.0.1:4747"
    with pytest.raises(ValueError, match="open it first: open_store"), make().run_context(agent=len, store=address):
        raise AssertionError("the block ran")


@pytest.mark.parametrize("mode", ["thread", "asyncio"])
@pytest.mark.parametrize("thread_safe", [True, False])
async def test_heartbeats_name_the_incarnation_and_what_it_runs(mode: Any, thread_safe: bool) -> None:
    store = InMemoryLightningStore(thread_safe=thread_safe)
    beats: list[Any] = []
    update = store.update_worker

    async def watched(worker_id: str, stats: Any, **kwargs: Any) -> Any:
        beats.append((kwargs["incarnation"], kwargs["attempts"], stats))
        return await update(worker_id, stats, **kwargs)

    store.update_worker = watched  # type: ignore[method-assign]

    async def agent(task: Any) -> None:
        seen = len(beats)
        for _ in range(500):
            await asyncio.sleep(0.01)
            if len(beats) >= seen + 2:
                return

    try:
        await store.add_resources(PROMPT)
        await store.enqueue_rollout("task")
        runner = make(max_rollouts=1, heartbeat_interval=0.02, heartbeat_launch_mode=mode)
        with runner.run_context(agent=agent, store=store):
            await runner.iter()
        rollout = (await store.query_rollouts())[0]
        running = [attempts for _, attempts, _ in beats if attempts]
        attempt: Any = await store.get_latest_attempt(rollout.rollout_id)
        assert running and running[0] == [(rollout.rollout_id, attempt.attempt_id)]
        assert len({incarnation for incarnation, _, _ in beats}) == 1
        assert {"timestamp", "host", "os", "cpu_threads", "disk_pct"} <= beats[0][2].keys()
        worker = await store.get_worker_by_id("Worker-0")
        assert worker is not None and worker.last_heartbeat_time is not None
    finally:
        store.close()
    assert not [thread for thread in threading.enumerate() if "heartbeat" in thread.name]


def make_slots(slots: int, max_rollouts: int | None = None, **options: Any) -> agl.LitAgentRunner[Any]:
    return agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=max_rollouts, slots=slots, **options)


class Together:
    """Counts how many run at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._gate = threading.Lock()

    def __enter__(self) -> None:
        with self._gate:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._gate:
            self.now -= 1


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_slots_work_side_by_side_each_as_a_worker_of_its_own(kind: str, asynchronous: bool, tmp_path: Path) -> None:
    together = Together()

    async def coroutine(task: int) -> float:
        with together:
            await asyncio.sleep(0.05)
        return float(task)

    def function(task: int) -> float:
        with together:
            time.sleep(0.05)
        return float(task)

    store: Any = InMemoryLightningStore() if kind == "memory" else open_store(f"sqlite:///{tmp_path}/log.db")
    try:
        await store.add_resources(PROMPT)
        made = [await store.enqueue_rollout(number) for number in range(12)]
        runner = make_slots(4, max_rollouts=10)
        with runner.run_context(agent=coroutine if asynchronous else function, store=store, worker_id=7):
            await runner.iter()
        assert together.most == 4
        ended = [await store.get_rollout_by_id(one.rollout_id) for one in made]
        assert [one.status for one in ended] == ["succeeded"] * 10 + ["queuing"] * 2
        workers = [one.attempt.worker_id for one in ended[:10]]
        assert set(workers) == {f"Worker-7-{slot}" for slot in range(4)}
        assert isinstance(store, EventLogStore)
        known = [store.engine.node.state.rollouts[one.rollout_id].attempts[0] for one in made[:10]]
        assert len({(one.worker_id, one.incarnation) for one in known}) == 4
        for one in ended[:10]:  # no span of one in the trace of another
            assert agl.find_final_reward(await store.query_spans(one.rollout_id)) == float(one.input)
    finally:
        store.close()


async def test_heartbeats_of_every_slot_name_what_it_runs(store: InMemoryLightningStore) -> None:
    seen: dict[str, set[tuple[tuple[str, str], ...]]] = {}
    update = store.update_worker

    async def watched(worker_id: str, *args: Any, attempts: Any = (), **kwargs: Any) -> Any:
        seen.setdefault(worker_id, set()).add(tuple(attempts))
        return await update(worker_id, *args, attempts=attempts, **kwargs)

    store.update_worker = watched  # type: ignore[method-assign]

    async def agent(task: int) -> float:
        await asyncio.sleep(0.3)
        return 1.0

    await store.add_resources(PROMPT)
    made = [await store.enqueue_rollout(number) for number in range(2)]
    runner = make_slots(3, max_rollouts=2, heartbeat_interval=0.05, interval_jitter=0.0)
    stop = threading.Event()
    with runner.run_context(agent=agent, store=store):
        work = asyncio.ensure_future(runner.iter(event=stop))
        await store.wait_for_rollouts([one.rollout_id for one in made], timeout=5)
        stop.set()
        await work
    assert set(seen) == {"Worker-0-0", "Worker-0-1", "Worker-0-2"}
    named = {rollout_id for beats in seen.values() for beat in beats for rollout_id, _ in beat}
    assert named == {one.rollout_id for one in made}
    assert all(len(beat) <= 1 for beats in seen.values() for beat in beats)


async def test_a_stop_lets_all_slots_finish_and_a_cancellation_ends_them_as_failed(store: InMemoryLightningStore) -> None:
    async def agent(task: str) -> float:
        await asyncio.sleep(0.3 if task == "short" else 30)
        return 1.0

    await store.add_resources(PROMPT)
    short = [await store.enqueue_rollout("short") for _ in range(2)]
    runner, stop = make_slots(3), threading.Event()
    with runner.run_context(agent=agent, store=store):
        work = asyncio.ensure_future(runner.iter(event=stop))
        await asyncio.sleep(0.1)
        stop.set()
        await asyncio.wait_for(work, 5)
        assert {(await store.get_rollout_by_id(one.rollout_id)).status for one in short} == {"succeeded"}  # type: ignore[union-attr]
        long = [await store.enqueue_rollout("long") for _ in range(2)]
        work = asyncio.ensure_future(runner.iter())
        await asyncio.sleep(0.2)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert {(await store.get_rollout_by_id(one.rollout_id)).status for one in long} == {"failed"}  # type: ignore[union-attr]


async def test_an_error_of_one_slot_ends_the_runner_after_what_runs(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = store.dequeue_rollout

    async def refused(worker_id: str | None = None, **kwargs: Any) -> Any:
        if worker_id == "Worker-0-1":
            await asyncio.sleep(0.1)
            raise Unauthorized("a wrong token")
        return await claim(worker_id, **kwargs)

    async def agent(task: str) -> float:
        await asyncio.sleep(0.3)
        return 1.0

    monkeypatch.setattr(store, "dequeue_rollout", refused)
    await store.add_resources(PROMPT)
    one = await store.enqueue_rollout("x")
    await store.enqueue_rollout("y")
    runner = make_slots(4)
    with runner.run_context(agent=agent, store=store), pytest.raises(Unauthorized):
        await asyncio.wait_for(runner.iter(), 5)
    assert (await store.get_rollout_by_id(one.rollout_id)).status == "succeeded"  # type: ignore[union-attr]


def test_no_slot_and_no_group_are_refused() -> None:
    for options in ({"slots": 0}, {"slots": 1, "group": ""}):
        with pytest.raises(InvalidInput):
            make_slots(**options)  # type: ignore[arg-type]
