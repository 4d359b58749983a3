"""Traces for the tests of adapters: recorded ones, by the tracer from the real OpenAI client, and hand-made ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from openai import OpenAI

import agentlightning as agl
from agentlightning.core.model.span import Span

from ...openai_stub import openai_stub

TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "Weather of a city", "parameters": {"type": "object"}},
    }
]


def record(agent: Callable[[Any], Awaitable[None]]) -> list[Span]:
    """What the store holds after the agent ran once; the agent gets a client of a stub's API."""

    async def run() -> list[Span]:
        store = agl.InMemoryLightningStore()
        tracer = agl.OtelTracer()
        tracer.init()
        tracer.init_worker(0, store)
        try:
            rollout = await store.start_rollout("task")
            ids = rollout.rollout_id, rollout.attempt.attempt_id
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                await agent(OpenAI(base_url=stub.base_url, api_key="none", max_retries=0))
            return list(await store.query_spans(rollout.rollout_id))
        finally:
            tracer.teardown_worker(0)
            tracer.teardown()
            store.close()

    with openai_stub() as stub:
        return asyncio.run(run())


def ask(client: Any, text: str, **more: Any) -> Any:
    """One chat completion about the text."""
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **more)


_next = iter(range(1, 10**9))


def span(
    name: str,
    start: float | None = None,
    end: float | None = None,
    *,
    parent: str | Span | None = None,
    id: str | None = None,
    sequence: int | None = None,
    **attributes: Any,
) -> Span:
    """A span by hand; double underscores in the names of attributes stand for dots."""
    number = next(_next)
    return Span.from_attributes(
        attributes={key.replace("__", "."): value for key, value in attributes.items()},
        rollout_id="ro-1",
        attempt_id="at-1",
        sequence_id=number if sequence is None else sequence,
        name=name,
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        span_id=id or f"{number:016x}",
        parent_id=parent.span_id if isinstance(parent, Span) else parent,
        start_time=start,
        end_time=end,
    )


def call(answer: str, start: float | None = None, end: float | None = None, **more: Any) -> Span:
    """A model call by hand, with the answer's text as its id too."""
    fields = {
        "gen_ai__prompt__0__role": "user",
        "gen_ai__prompt__0__content": f"Say {answer}",
        "gen_ai__completion__0__role": "assistant",
        "gen_ai__completion__0__content": answer,
        "gen_ai__response__id": answer,
    }
    return span("openai.chat.completion", start, end, **{**fields, **more})


def reward(value: Any, start: float | None = None, **more: Any) -> Span:
    """A reward by hand."""
    return span("agentlightning.annotation", start, start, agentlightning__reward__0__value=value, **more)


def answers(triplets: list[agl.Triplet]) -> list[Any]:
    """Text of each answer and its reward."""
    return [(triplet.response["raw_content"][0]["content"], triplet.reward) for triplet in triplets]


def fixture(name: str) -> list[Span]:
    """The spans of a file in ``fixtures``, one second each, one after the other."""
    items = json.loads((Path(__file__).parent / "fixtures" / f"{name}.json").read_text(encoding="utf-8"))
    return [
        span(item["name"], place, place + 0.9, id=item["span_id"], parent=item["parent_id"], **item["attributes"])
        for place, item in enumerate(items)
    ]
