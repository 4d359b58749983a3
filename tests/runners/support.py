"""One runner on two tasks, the bad one and a good one after it, and what the log says of the bad one."""

from __future__ import annotations

from typing import Any

import agentlightning as agl
from agentlightning.core.model.semconv import AGL_EXCEPTION, AGL_OUTPUT
from agentlightning.projections.store.memory_store import InMemoryLightningStore

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
