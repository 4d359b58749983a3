"""No trace makes an adapter fail: spans of all shapes, from a generator that likes odd ones."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentlightning as agl
from agentlightning.core.model.span import Span

from .traces import answers, fixture, reward, span

ADAPTERS: list[agl.TraceAdapter[Any]] = [
    agl.TracerTraceToTriplet(),
    agl.TracerTraceToTriplet(False, "", "a", False, "first_sibling", True),
    agl.LlmProxyTraceToTriplet(),
    agl.TraceToMessages(),
]
IDS = ["", "0" * 16, *(letter * 16 for letter in "abcd")]
NAMES = [
    "openai.chat.completion",
    "openai.chat.completion.parse",
    "raw_gen_ai_request",
    "litellm_request",
    "langchain.Chain.x",
    "agentlightning.annotation",
    "agentlightning.reward",
    "agentlightning.operation",
    "tool_call.f",
    "",
]
STEMS = ["gen_ai.prompt", "gen_ai.completion", "gen_ai.request", "gen_ai.request.functions", "gen_ai.response"]
STEMS += ["agentlightning.reward", "agentlightning.operation.input.messages", "agentlightning.operation.output.choices"]
LEAVES = [
    "role",
    "content",
    "tool_calls",
    "tool_calls.0.name",
    "tool_calls.0.id",
    "tool_call_id",
    "name",
    "value",
    "parameters",
]
KEYS = st.one_of(
    st.builds(lambda s, i, leaf: f"{s}{i}{leaf}", st.sampled_from(STEMS), st.sampled_from(["", ".", ".0.", ".1.", ".²."]),
              st.sampled_from(["", *LEAVES])),
    st.sampled_from([
        "agent.name", "lc_name", "type", "tool.name", "tool.call.id", "tool.parameters", "reward", "gen_ai.response.id",
        "agentops.task.output", "agentlightning.operation.name", "prompt_token_ids", "response_token_ids",
        "logprobs.content", "llm.hosted_vllm.id", "llm.x.prompt_token_ids", "llm.x.response_token_ids", "llm.x.choices",
        "agentlightning.operation.output", "agentlightning.operation.output.response_token_ids.0",
    ]),
)  # fmt: skip
TEXTS = [
    "",
    "a",
    "user",
    "assistant",
    "tool",
    "agent",
    "[",
    "[" * 9999,
    "{}",
    "[1]",
    "[[1]]",
    "[[]]",
    "[{}]",
    "null",
    "NaN",
]
TEXTS += [
    '[{"type": "image_url", "image_url": 1}]',
    '[{"type": ["text"]}]',
    "{'token_ids': [1]}",
    "agentlightning.reward",
]
TEXTS += ['[{"token_ids": [1]}]', "\ud800", "1e999", '{"type": "reward", "value": 1}', "9" * 5000]
VALUES = st.one_of(
    st.sampled_from(TEXTS), st.integers(), st.floats(), st.booleans(), st.lists(st.integers(), max_size=2),
    st.lists(st.sampled_from(TEXTS), max_size=2),
)  # fmt: skip
MOMENTS = st.one_of(st.none(), st.integers(0, 4), st.floats())


@st.composite
def odd_spans(draw: st.DrawFn) -> Span:
    made = span(
        draw(st.sampled_from(NAMES)),
        draw(MOMENTS),
        draw(MOMENTS),
        id="x",
        parent=draw(st.sampled_from([None, *IDS])),
        sequence=draw(st.integers(-1, 3)),
        **draw(st.dictionaries(KEYS, VALUES, max_size=6)),
    )
    made.span_id = draw(st.sampled_from(IDS))
    return made


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
@settings(deadline=None, max_examples=200)
@given(spans=st.lists(odd_spans(), min_size=1, max_size=6))
def test_adapters_are_total(adapter: agl.TraceAdapter[Any], spans: list[Span]) -> None:
    before = [item.model_dump() for item in spans]
    found = adapter(spans)
    assert isinstance(found, list) and len(found) <= len(spans)
    for item in found:
        if isinstance(item, agl.Triplet):
            assert item.reward is None or math.isfinite(item.reward)
            assert all(type(token) is int for token in [*item.prompt["token_ids"], *item.response["token_ids"]])
            json.dumps(item.model_dump())
        else:
            assert item["messages"] and all(message["role"] for message in item["messages"])
            json.dumps(item)
    assert repr([item.model_dump() for item in spans]) == repr(before), "the spans themselves are not changed"


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
@pytest.mark.parametrize("items", [[None], [7, "x", {}], [object()]])
def test_what_is_no_span_is_counted(adapter: agl.TraceAdapter[Any], items: list[Any]) -> None:
    fresh = type(adapter)()
    assert fresh([*items, span("a", 1, 2)]) == []
    assert sum(fresh.oddities.values()) == len(items)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_a_huge_value_is_no_trouble(adapter: agl.TraceAdapter[Any]) -> None:
    big = "x" * 5_000_000
    made = span("openai.chat.completion", 1, 2, gen_ai__prompt__0__role="user", gen_ai__prompt__0__content="[" + big)
    many: dict[str, Any] = {f"gen_ai.prompt.{number}.content": "y" for number in range(5000)}
    assert len(adapter([made, span("raw_gen_ai_request", 3, 4, **many)])) <= 2


def test_a_frameworks_structured_output_is_read_unless_the_caller_asks_for_other_names() -> None:
    spans = fixture("structured-output-of-a-framework")
    assert answers(agl.TracerTraceToTriplet()(spans)) == [('{"answer": "42"}', 1.0)]
    adapter = agl.TracerTraceToTriplet(llm_call_match=r"openai\.chat")
    assert adapter(spans) == []
    assert "'chat_model.llm'" in next(iter(adapter.oddities))


def test_rewards_that_are_missing_stay_missing() -> None:
    spans = [*fixture("tool-agent-without-roles"), reward("n/a", 9), reward(float("nan"), 10)]
    adapter = agl.TracerTraceToTriplet()
    assert [triplet.reward for triplet in adapter(spans)] == [None, None]
    assert adapter.oddities == {"reward of nan": 1, "reward that is no number": 1}
