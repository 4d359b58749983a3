"""Triplets of recorded and of odd traces: no call is lost, no reward is invented, nothing raises."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import trace

import agentlightning as agl
from agentlightning.algorithms.adapters.triplets import (
    RewardMatchPolicy,
    TraceTree,
    TraceTripletAdapter,
    TripletExporter,
)
from agentlightning.core.model.span import Span

from ...openai_stub import ANSWER
from .traces import TOOLS, answers, ask, call, record, reward, span


def questions(triplets: Sequence[agl.Triplet]) -> list[Any]:
    return [triplet.prompt["raw_content"][-1]["content"] for triplet in triplets]


def test_recorded_calls_become_triplets_with_their_rewards() -> None:
    async def agent(client: Any) -> None:
        ask(client, "one", temperature=0.5)
        agl.emit_reward(0.1)
        for _ in ask(client, "two", stream=True):
            pass
        client.embeddings.create(model="m", input="x")
        agl.emit_reward(0.2)

    adapter = agl.TracerTraceToTriplet()
    triplets = adapter(record(agent))
    assert questions(triplets) == ["one", "two"]
    assert [triplet.reward for triplet in triplets] == [0.1, 0.2]
    first = triplets[0]
    assert first.prompt == {"token_ids": [], "raw_content": [{"role": "user", "content": "one"}], "image_urls": []}
    assert first.response["raw_content"][0]["content"] == ANSWER and first.response["token_ids"] == []
    assert first.metadata["request"]["temperature"] == 0.5
    assert first.metadata["response_id"] == "chatcmpl-stub" and first.metadata["agent_name"] == "*"
    json.dumps([triplet.model_dump() for triplet in triplets])


def test_agents_of_a_framework_are_told_apart_by_their_nesting() -> None:
    tracer = trace.get_tracer("a framework")

    async def agent(client: Any) -> None:
        with tracer.start_as_current_span("langchain.Chain.invoke", attributes={"lc_name": "writer"}):
            with tracer.start_as_current_span("chat_model.llm"):
                ask(client, "write")
            with tracer.start_as_current_span("step", attributes={"agent.name": "critic"}):
                ask(client, "criticise", tools=TOOLS)
        ask(client, "outside")
        agl.emit_reward(1.0)

    spans = record(agent)
    every = agl.TracerTraceToTriplet()(spans)
    assert [(q, t.metadata["agent_name"]) for q, t in zip(questions(every), every)] == [
        ("write", "writer"),
        ("criticise", "critic"),
        ("outside", "*"),
    ]
    assert [triplet.reward for triplet in every] == [None, None, 1.0]
    assert questions(agl.TracerTraceToTriplet(agent_match="^wri")(spans)) == ["write"]
    assert questions(agl.TracerTraceToTriplet(agent_match="critic|writer")(spans)) == ["write", "criticise"]


def test_the_calls_of_a_judge_are_no_triplets() -> None:
    async def agent(client: Any) -> None:
        ask(client, "task")
        with agl.operation(name="agentlightning.reward"):
            ask(client, "judge")
        agl.emit_reward(0.5)

    spans = record(agent)
    assert questions(agl.TracerTraceToTriplet()(spans)) == ["task"]
    assert questions(agl.TracerTraceToTriplet(exclude_llm_call_in_reward=False)(spans)) == ["task", "judge"]


def test_calls_of_threads_without_a_context_find_their_place_by_time() -> None:
    async def agent(client: Any) -> None:
        with trace.get_tracer("a framework").start_as_current_span("work", attributes={"agent.name": "worker"}):
            thread = threading.Thread(target=ask, args=(client, "in a thread"))
            thread.start()
            thread.join()

    spans = record(agent)
    for item in spans:
        if item.name == "openai.chat.completion":
            item.parent_id = None
    (triplet,) = agl.TracerTraceToTriplet()(spans)
    assert triplet.metadata["agent_name"] == "worker"
    (flat,) = agl.TracerTraceToTriplet(repair_hierarchy=False)(spans)
    assert flat.metadata["agent_name"] == "*"


def test_opentelemetrys_own_spans_are_taken() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("mine")
    with tracer.start_as_current_span("root") as root:
        with tracer.start_as_current_span("openai.chat.completion") as one:
            one.set_attributes(
                {"gen_ai.completion.0.content": "hi", "prompt_token_ids": [1, 2], "response_token_ids": [3]}
            )
        agl_reward = tracer.start_span("agentlightning.annotation", attributes={"agentlightning.reward.0.value": 0.5})
        agl_reward.end()
    (triplet,) = agl.TracerTraceToTriplet().adapt([one, agl_reward, root])
    assert (triplet.prompt["token_ids"], triplet.response["token_ids"], triplet.reward) == ([1, 2], [3], 0.5)


def test_token_ids_logprobs_and_images_come_along() -> None:
    content = json.dumps([{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "http://x/1.png"}}])
    one = call("a", 1, 2, prompt_token_ids=[1, 2], response_token_ids=[3, 4], gen_ai__prompt__1__content=content)
    one.attributes["logprobs.content"] = '[{"token": "a", "logprob": -0.5}]'
    (triplet,) = agl.TracerTraceToTriplet()([one])
    assert triplet.prompt["token_ids"] == [1, 2] and triplet.prompt["image_urls"] == ["http://x/1.png"]
    assert triplet.response["token_ids"] == [3, 4] and triplet.response["logprobs"][0]["logprob"] == -0.5
    without = agl.TracerTraceToTriplet(_skip_empty_token_spans=True)
    assert answers(without([one, call("b", 3, 4)])) == [("a", None)]
    assert without.oddities == {"model call without token ids": 1}


def test_an_operation_span_holds_a_call_as_well() -> None:
    one = span(
        "openai.chat.completions.create",
        1,
        2,
        **{
            "agentlightning.operation.input.messages.0.role": "user",
            "agentlightning.operation.input.messages.0.content": "hi",
            "agentlightning.operation.output.id": "r-1",
            "agentlightning.operation.output.choices.0.message.content": "hello",
            "agentlightning.operation.output.choices.0.token_ids.0": 7,
            "agentlightning.operation.output.prompt_token_ids": [5],
        },
    )
    (triplet,) = agl.TracerTraceToTriplet()([one])
    assert triplet.prompt["raw_content"] == [{"role": "user", "content": "hi"}]
    assert triplet.response["raw_content"][0]["message"] == {"content": "hello"}
    assert (triplet.prompt["token_ids"], triplet.response["token_ids"]) == ([5], [7])
    assert triplet.metadata["response_id"] == "r-1"


def test_two_spans_of_one_call_are_one_triplet_and_two_calls_with_one_id_are_two() -> None:
    outer = call("a", 1, 5, gen_ai__response__id="same")
    inner = call("a", 2, 4, parent=outer, gen_ai__response__id="same")
    unnamed = call("a", 2, 4, parent=outer, gen_ai__response__id=7)
    assert answers(agl.TracerTraceToTriplet()([unnamed, inner, outer])) == [("a", None)]
    beside = call("a", 1.5, 4.5, gen_ai__response__id="same", gen_ai__prompt__0__content="in other words")
    assert len(agl.TracerTraceToTriplet()([outer, beside])) == 1
    later = call("b", 6, 7, gen_ai__response__id="same")
    adapter = agl.TracerTraceToTriplet()
    assert answers(adapter([outer, later])) == [("a", None), ("b", None)]
    assert adapter.oddities == {"answer id that two different model calls share": 1}


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([call("a", 1, 2), reward(0.1, 3), call("b", 4, 5), reward(0.2, 6)], [("a", 0.1), ("b", 0.2)]),
        ([call("a", 1, 2), call("b", 3, 4), reward(0.2, 5)], [("a", None), ("b", 0.2)]),
        ([call("a", 1, 2), call("b", 3, 4), reward(0.1, 5), reward(0.2, 6)], [("a", 0.2), ("b", 0.1)]),
        ([call("a", 1, 9), reward(0.5, 5)], [("a", 0.5)]),
        ([reward(0.5, 0), call("a", 1, 2)], [("a", None)]),
        ([call("a", 1, 2), reward(float("nan"), 3)], [("a", None)]),
        ([call("a", 1, 2), reward(float("inf"), 3)], [("a", None)]),
        ([call("a", 1, 2), reward("much", 3)], [("a", None)]),
        ([call("a", 1, 2), reward(0.5, 3), reward(float("nan"), 4)], [("a", 0.5)]),
        ([call("a"), reward(0.1), call("b"), reward(0.2)], [("a", 0.1), ("b", 0.2)]),
        ([call("a", 1, 2), reward(0.1), call("b", 3, None), reward(0.2)], [("a", 0.1), ("b", 0.2)]),
        ([call("a", None, 1), reward(0.5, 0), call("b")], [("a", 0.5), ("b", None)]),
        ([call("a", float("nan"), float("inf")), reward(0.1, 1)], [("a", 0.1)]),
    ],
)
def test_a_reward_belongs_to_the_latest_call_that_has_none(spans: list[Span], expected: list[Any]) -> None:
    assert answers(agl.TracerTraceToTriplet()(spans)) == expected


def test_the_final_reward_is_in_the_triplets_where_every_call_has_one_already() -> None:
    adapter = agl.TracerTraceToTriplet()
    spans = [call("a", 1, 2), reward(0.1, 3), reward(0.2, 4), reward(0.9, 5)]
    (triplet,) = adapter(spans)
    assert triplet.reward == 0.9 == agl.find_final_reward(spans)
    assert triplet.metadata["intermediate_rewards"] == [0.1]
    assert adapter.oddities == {"reward without a model call of its own": 1}


def test_siblings_share_rewards_with_siblings_only() -> None:
    one, two = span("step", 0, 10), span("step", 10, 20)
    spans = [
        call("a", 1, 2, parent=one),
        call("b", 3, 4, parent=one),
        reward(0.1, 5, parent=one),
        one,
        call("c", 11, 12, parent=two),
        two,
        reward(0.9, 21),
    ]
    by_sibling = agl.TracerTraceToTriplet(reward_match=RewardMatchPolicy.FIRST_SIBLING)
    assert answers(by_sibling(spans)) == [("a", None), ("b", 0.1), ("c", None)]
    assert answers(agl.TracerTraceToTriplet(reward_match="first_occurrence")(spans))[-1] == ("c", 0.9)


def test_no_triplets_are_explained_by_the_names_that_were_not_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    adapter = agl.TracerTraceToTriplet()
    with caplog.at_level(logging.WARNING):
        assert adapter([span("chat_model.llm", 1, 2, gen_ai__completion__0__content="hi"), reward(1.0, 3)]) == []
    assert "'chat_model.llm'" in caplog.text
    assert len(agl.TracerTraceToTriplet(llm_call_match=r"chat_model\.llm")([span("chat_model.llm", 1, 2)])) == 1


def test_one_odd_value_costs_nothing_else_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    odd = call("a", 1, 2, prompt_token_ids="[1, two]", response_token_ids=[True], logprobs__content="{")
    with caplog.at_level(logging.WARNING):
        adapter = agl.TracerTraceToTriplet()
        triplets = adapter([odd, call("b", 3, 4, prompt_token_ids="(1, 2)"), object(), reward(0.5, 5)])  # type: ignore[list-item]
    assert answers(triplets) == [("a", None), ("b", 0.5)]
    assert triplets[0].response["token_ids"] == [] and triplets[1].prompt["token_ids"] == [1, 2]
    assert adapter.oddities == {
        "prompt_token_ids that are no list of integers": 1,
        "response_token_ids that are no list of integers": 1,
        "logprobs that are no JSON": 1,
        "item of type object that is no span": 1,
    }
    assert len(caplog.records) == 1
    adapter([odd])
    assert adapter.oddities["logprobs that are no JSON"] == 2
    assert agl.TracerTraceToTriplet().oddities == {}, "each adapter counts for itself"
    assert pickle.loads(pickle.dumps(adapter)).oddities == adapter.oddities


def test_no_spans_are_the_callers_error() -> None:
    with pytest.raises(ValueError, match="No spans provided to create TraceTree."):
        agl.TracerTraceToTriplet()([])
    with pytest.raises(ValueError, match="agent_match"):
        agl.TracerTraceToTriplet(agent_match="(")
    with pytest.raises(ValueError):
        agl.TracerTraceToTriplet(reward_match="last")


def test_the_older_names_are_the_same_adapter() -> None:
    assert TraceTripletAdapter is agl.TracerTraceToTriplet
    spans = [call("a", 1, 2, prompt_token_ids=[1], response_token_ids=[2]), reward(0.5, 3)]
    (triplet,) = TripletExporter().export(spans)
    assert triplet.model_dump() == {
        "prompt": {"token_ids": [1]},
        "response": {"token_ids": [2]},
        "reward": 0.5,
        "metadata": {"response_id": "a", "agent_name": "*"},
    }


def test_a_trajectory_can_be_given_its_final_reward() -> None:
    tree = TraceTree.from_spans([call("a", 1, 2), call("b", 3, 4)])
    assert answers(tree.to_trajectory(final_reward=0.7)) == [("a", None), ("b", 0.7)]
    twice = [call("a", 1, 2), call("a", 1, 2)]
    assert len(TraceTree.from_spans(twice).to_trajectory(dedup_llm_call=False)) == 2
