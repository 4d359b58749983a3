"""Triplets of a model proxy's spans: their order is the store's, whatever their clocks say."""

from __future__ import annotations

from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.model.span import Span

from .traces import reward, span


def raw(sequence: int, answer: str, provider: str = "hosted_vllm", **more: Any) -> Span:
    fields = {
        f"llm.{provider}.id": answer,
        f"llm.{provider}.prompt_token_ids": "[1, 2]",
        f"llm.{provider}.response_token_ids": f"[[{sequence}]]",
    }
    return span("raw_gen_ai_request", 100 - sequence, sequence=sequence, **{**fields, **more})


def outcome(triplets: list[agl.Triplet]) -> list[Any]:
    return [(triplet.response["token_ids"], triplet.reward) for triplet in triplets]


def test_rewards_follow_sequence_ids_and_not_clocks() -> None:
    spans = [reward(0.2, 0, sequence=5), raw(4, "b"), raw(1, "a"), reward(0.1, 999, sequence=2)]
    adapter = agl.LlmProxyTraceToTriplet()
    triplets = adapter(spans)
    assert outcome(triplets) == [([1], 0.1), ([4], 0.2)]
    assert triplets[0].prompt == {"token_ids": [1, 2]} and triplets[0].metadata == {"response_id": "a"}
    assert adapter([]) == [] and adapter.oddities == {}


def test_both_spans_of_one_call_are_one_triplet_of_any_provider() -> None:
    outer = span(
        "litellm_request", sequence=1, prompt_token_ids=[1, 2], response_token_ids=[1], gen_ai__response__id="a"
    )
    assert outcome(agl.LlmProxyTraceToTriplet()([raw(1, "a", "openai"), outer])) == [([1], None)]
    assert outcome(agl.LlmProxyTraceToTriplet()([outer])) == [([1], None)]
    bare = span("litellm_request", sequence=1, gen_ai__response__id="a")
    assert outcome(agl.LlmProxyTraceToTriplet()([bare, raw(1, "a")])) == [([1], None)]


def test_the_ids_of_the_first_choice_are_read_where_there_are_no_others() -> None:
    made = raw(3, "a", llm__hosted_vllm__choices="[{'token_ids': [8, 9], 'index': 0}]")
    del made.attributes["llm.hosted_vllm.response_token_ids"]
    assert outcome(agl.LlmProxyTraceToTriplet()([made])) == [([8, 9], None)]


def test_a_reward_needs_a_call_with_a_smaller_sequence_id() -> None:
    adapter = agl.LlmProxyTraceToTriplet()
    assert outcome(adapter([raw(2, "a"), reward(0.5, sequence=2)])) == [([2], None)]
    assert adapter.oddities == {"reward without a model call of its own": 1}
    (triplet,) = agl.LlmProxyTraceToTriplet()([raw(1, "a"), reward(0.5, sequence=2), reward(0.9, sequence=3)])
    assert triplet.reward == 0.9 and triplet.metadata["intermediate_rewards"] == [0.5]


@pytest.mark.parametrize("odd", ["[", "[1, 'x']", "{'a': 1}", "None", "[" * 100_000, "[true]", ""])
def test_ids_that_cannot_be_read_cost_their_call_only(odd: str) -> None:
    adapter = agl.LlmProxyTraceToTriplet()
    spans = [raw(1, "a", **{"llm.hosted_vllm.prompt_token_ids": odd}), raw(2, "b"), reward(float("nan"), sequence=3)]
    assert outcome(adapter(spans)) == [([2], None)]
    assert adapter.oddities["proxied call without token ids"] == 1 and adapter.oddities["reward of nan"] == 1


def test_two_calls_with_one_id_are_two_and_two_spans_without_an_id_are_one() -> None:
    adapter = agl.LlmProxyTraceToTriplet()
    assert outcome(adapter([raw(1, "same"), raw(2, "same")])) == [([1], None), ([2], None)]
    assert adapter.oddities == {"answer id that two different model calls share": 1}
    inner = raw(1, "a", id="00000000000000aa", parent="00000000000000bb")
    outer = span("litellm_request", sequence=2, id="00000000000000bb", prompt_token_ids=[1, 2], response_token_ids=[1])
    del inner.attributes["llm.hosted_vllm.id"]
    assert outcome(agl.LlmProxyTraceToTriplet()([inner, outer])) == [([1], None)]
