"""What a trace lacks is said of its attempt, and is an error where that was asked for; nothing is made up."""

from __future__ import annotations

from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.errors import LostPlaceholder
from agentlightning.projections.store.memory_store import InMemoryLightningStore

from ..support import PROMPT, attempt_of, told


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
