"""Agents with bad luck: each costs its own attempt and nothing else, and the log says what happened."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.errors import LostPlaceholder
from agentlightning.core.semconv import AGL_EXCEPTION, AGL_OUTPUT
from agentlightning.projections.memory_store import InMemoryLightningStore
from agentlightning.runners import agent_call
from agentlightning.runners import attempt as attempt_module
from agentlightning.runners.capture import Output

PROMPT: Any = {"prompt": "Say {x}"}


async def attempt_of(store: InMemoryLightningStore, rollout: Any) -> tuple[Any, list[Any]]:
    """The latest attempt and its spans."""
    attempt = await store.get_latest_attempt(rollout.rollout_id)
    return attempt, list(await store.query_spans(rollout.rollout_id))


async def run_two(
    store: InMemoryLightningStore, agent: Any, **options: Any
) -> tuple[Any, list[Any], agl.LitAgentRunner[Any]]:
    """Attempt and spans of the task "bad", after the same runner did a task "good" too."""
    config = agl.RolloutConfig(timeout_seconds=options.pop("timeout_seconds", None))
    await store.add_resources(PROMPT)
    bad, good = [await store.enqueue_rollout(task, config=config) for task in ("bad", "good")]
    runner = agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=2, **options)
    with runner.run_context(agent=agent, store=store):
        await runner.iter()
    attempt, spans = await attempt_of(store, good)
    assert attempt.status == "succeeded" and agl.find_final_reward(spans) == 1.0
    return (*await attempt_of(store, bad), runner)


def told(spans: list[Any]) -> dict[str, Any]:
    """Type, message and traceback of the one exception of the attempt."""
    (span,) = [span for span in spans if span.name == AGL_EXCEPTION]
    return {key.removeprefix("exception."): value for key, value in span.attributes.items()}


def printed(spans: list[Any]) -> dict[str, Any]:
    """The attributes of the one output of the attempt."""
    (span,) = [span for span in spans if span.name == AGL_OUTPUT]
    return {key.removeprefix(f"{AGL_OUTPUT}."): value for key, value in span.attributes.items()}


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
    assert runner.given_up == 1 and "left behind; 1 so far" in caplog.text
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


async def test_a_hundred_megabytes_are_counted_and_their_ends_kept(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull, "w") as nowhere:  # noqa: ASYNC230
        monkeypatch.setattr(sys, "stdout", nowhere)

        def agent(task: str) -> float:
            if task == "bad":
                print("first words")
                line = "x" * 9_999 + "\n"
                for _ in range(10_000):
                    sys.stdout.write(line)
                print("last words")
            return 1.0

        attempt, spans, _ = await run_two(store, agent)
    output = printed(spans)
    assert attempt.status == "succeeded" and agl.find_final_reward(spans) == 1.0
    assert output["head"].startswith("first words\n") and output["tail"].endswith("last words\n")
    assert output["total_bytes"] == 100_000_023
    kept = len(output["head"]) + len(output["tail"])
    assert kept <= 1024 * 1024 and output["dropped_bytes"] == output["total_bytes"] - kept
    assert (attempt.metadata or {}).get("trace_lint") == ["no_model_call"]


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_output_belongs_to_its_attempt_with_many_in_one_process(
    store: InMemoryLightningStore, capsys: pytest.CaptureFixture[str], asynchronous: bool
) -> None:
    log = logging.getLogger("somebody.else")
    real = sys.stdout, sys.stderr

    def say(task: int) -> None:
        print(f"out {task}")
        sys.stderr.write(f"err {task}\n")
        sys.stdout.buffer.write(f"raw {task}\n".encode())
        log.warning("log %d", task)

    def function(task: int) -> float:
        say(task)
        time.sleep(0.01)
        say(task)
        return 1.0

    async def coroutine(task: int) -> float:
        say(task)
        await asyncio.sleep(0.01)
        await asyncio.to_thread(say, task)
        return 1.0

    await store.add_resources(PROMPT)
    rollouts = [await store.enqueue_rollout(number) for number in range(8)]
    runner = agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=8, slots=4)
    with runner.run_context(agent=coroutine if asynchronous else function, store=store):
        await runner.iter()
    for number, rollout in enumerate(rollouts):
        output = printed((await attempt_of(store, rollout))[1])
        once = f"out {number}\nerr {number}\nraw {number}\nWARNING somebody.else: log {number}\n"
        assert output["head"] == once * 2 and "dropped_bytes" not in output
        assert (output["stdout_bytes"], output["stderr_bytes"]) == (24, 12)
    assert (sys.stdout, sys.stderr) == real
    assert "out 7" in capsys.readouterr().out, "what is kept is printed as well"


async def test_quiet_attempts_and_runners_that_do_not_capture_have_no_output(store: InMemoryLightningStore) -> None:
    _, spans, _ = await run_two(store, lambda task: 1.0)
    assert AGL_OUTPUT not in [span.name for span in spans]

    def loud(task: str) -> float:
        print("hello")
        return 1.0

    _, spans, _ = await run_two(store, loud, capture_output=False)
    assert AGL_OUTPUT not in [span.name for span in spans]


def test_an_output_keeps_both_ends_exactly() -> None:
    for pieces in (1, 3, 1000):
        output, whole = Output(10, 10), b""
        for number in range(pieces):
            piece = b"%d," % number
            output.add("stdout", piece)
            whole += piece
        fields: Any = output.attributes()
        if len(whole) <= 20:
            assert fields["agentlightning.output.head"].encode() == whole
        else:
            assert fields["agentlightning.output.head"].encode() == whole[:10]
            assert fields["agentlightning.output.tail"].encode() == whole[-10:]
            assert fields["agentlightning.output.dropped_bytes"] == len(whole) - 20


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


async def test_strict_traces_make_an_incomplete_trace_a_failure(store: InMemoryLightningStore) -> None:
    await store.add_resources(PROMPT)
    rollout = await store.enqueue_rollout("task")
    runner = agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=1, strict_traces=True)
    with runner.run_context(agent=lambda task: None, store=store):
        await runner.iter()
    attempt, spans = await attempt_of(store, rollout)
    assert attempt.status == "failed" and told(spans)["type"] == "IncompleteTrace"
    assert "no model call" in told(spans)["message"] and "no reward" in told(spans)["message"]


async def test_a_missing_reward_stays_missing_and_is_said(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.add_resources(PROMPT)
    rollouts = [await store.enqueue_rollout("task") for _ in range(2)]
    runner = agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=2)
    with runner.run_context(agent=lambda task: None, store=store):
        await runner.iter()
    for rollout in rollouts:
        attempt, spans = await attempt_of(store, rollout)
        assert attempt.status == "succeeded" and agl.find_final_reward(spans) is None
        assert attempt.metadata["trace_lint"] == ["no_model_call", "no_reward"]
    assert caplog.text.count("no reward was recorded") == 1, "said once for each runner"


@pytest.mark.parametrize("engine", ["f-string", "jinja"])
async def test_a_lost_placeholder_is_noted_and_with_strict_prompts_an_error(
    store: InMemoryLightningStore, engine: Any
) -> None:
    if engine == "jinja":
        pytest.importorskip("jinja2")

    def body(task: str, prompt_template: agl.PromptTemplate) -> float:
        return float("Why" in prompt_template.format(question="Why?", style="brief"))

    template = "Be {style}." if engine == "f-string" else "Be {{ style }}."
    resources: Any = {"prompt": agl.PromptTemplate(template=template, engine=engine)}
    runner = agl.LitAgentRunner[Any](tracer=agl.OtelTracer())
    with runner.run_context(agent=agl.rollout(body), store=store):
        rollout = await runner.step("task", resources=resources)
    attempt, _ = await attempt_of(store, rollout)
    assert attempt.metadata["lost_placeholders"] == ["question"]
    with runner.run_context(agent=agl.prompt_rollout(strict_prompts=True)(body), store=store):
        with pytest.raises(LostPlaceholder, match="'question'"):
            await runner.step("task", resources=resources)


async def test_what_the_agent_put_into_its_metadata_stays(store: InMemoryLightningStore) -> None:
    async def agent(task: str, rollout: Any) -> None:
        await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, metadata={"mine": 1})

    await store.add_resources(PROMPT)
    rollout = await store.enqueue_rollout("task")
    runner = agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=1)
    with runner.run_context(agent=agent, store=store):
        await runner.iter()
    attempt, _ = await attempt_of(store, rollout)
    assert attempt.metadata == {"mine": 1, "trace_lint": ["no_model_call", "no_reward"]}
