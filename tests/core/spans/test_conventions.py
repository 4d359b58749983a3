"""Model calls in the conventions of other instrumentations become messages and triplets, and each counts once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentlightning as agl
from agentlightning.algorithms.adapters.triplets import TraceTree
from agentlightning.core.model.span import Event, OtelResource, Span
from agentlightning.core.spans.conventions import exchange_of
from agentlightning.core.spans.model_calls import candidates_of, distinct_calls
from agentlightning.runners.worker.agent_result import check_trace

from ...algorithms.adapters.traces import answers, call, reward, span

CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "Paris"}'}}
ASKED: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
]
ANSWERED: list[Any] = [{"role": "assistant", "content": "It is sunny."}]
CHAT: dict[str, Any] = {"messages": [*ASKED[:2], {**ASKED[2], "content": ""}, ASKED[3]], "model": "m"}


def flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: item for name, one in value.items() for key, item in flat(f"{prefix}.{name}", one).items()}
    if isinstance(value, list):
        return {key: item for number, one in enumerate(value) for key, item in flat(f"{prefix}.{number}", one).items()}
    return {prefix: value}


OTEL_PROMPT = [
    {"role": "user", "parts": [{"type": "text", "content": "Weather?"}]},
    {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "look_up", "arguments": {"city": "Paris"}}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "sunny"}]},
]
OTEL_ANSWER = [
    {
        "role": "assistant",
        "parts": [{"type": "reasoning", "content": "hm"}, {"type": "text", "content": "It is sunny."}],
        "finish_reason": "stop",
    }
]
OTEL: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Be brief."}]),
    "gen_ai.input.messages": json.dumps(OTEL_PROMPT),
    "gen_ai.output.messages": json.dumps(OTEL_ANSWER),
}
EVENTS = [
    {"event.name": "gen_ai.system.message", "content": "Be brief.", "role": "system"},
    {"event.name": "gen_ai.user.message", "content": "Weather?", "role": "user"},
    {
        "event.name": "gen_ai.assistant.message",
        "role": "assistant",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": {"city": "Paris"}}}],
    },
    {"event.name": "gen_ai.tool.message", "content": "sunny", "role": "tool", "id": "c1"},
    {"event.name": "gen_ai.choice", "index": 0, "message": {"role": "assistant", "content": "It is sunny."}},
]
OPENINFERENCE = {
    "openinference.span.kind": "LLM",
    **flat(
        "llm.input_messages",
        [
            {"message": {"role": "system", "content": "Be brief."}},
            {"message": {"role": "user", "contents": [{"message_content": {"type": "text", "text": "Weather?"}}]}},
            {
                "message": {
                    "role": "assistant",
                    "tool_calls": [
                        {"tool_call": {"id": "c1", "function": {"name": "look_up", "arguments": '{"city": "Paris"}'}}}
                    ],
                }
            },
            {"message": {"role": "tool", "content": "sunny", "tool_call_id": "c1"}},
        ],
    ),
    **flat("llm.output_messages", [{"message": {"role": "assistant", "content": "It is sunny."}}]),
}
VERCEL: dict[str, Any] = {
    "ai.operationId": "ai.generateText.doGenerate",
    "ai.prompt.messages": json.dumps(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": [{"type": "tool-call", "toolCallId": "c1", "toolName": "look_up", "input": {"city": "Paris"}}],
            },
            {
                "role": "tool",
                "content": [
                    {"type": "tool-result", "toolCallId": "c1", "toolName": "x", "output": {"type": "text", "value": "sunny"}}
                ],
            },
        ]
    ),
    "ai.response.text": "It is sunny.",
    "ai.response.id": "a-1",
}
LANGCHAIN = [
    [
        {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "SystemMessage"], "kwargs": {"content": "Be brief."}},
        {"lc": 1, "type": "constructor", "id": ["x", "HumanMessage"], "kwargs": {"content": "Weather?", "type": "human"}},
        {
            "lc": 1,
            "type": "constructor",
            "id": ["x", "AIMessage"],
            "kwargs": {"content": "", "tool_calls": [{"name": "look_up", "args": {"city": "Paris"}, "id": "c1"}]},
        },
        {"lc": 1, "type": "constructor", "id": ["x", "ToolMessage"], "kwargs": {"content": "sunny", "tool_call_id": "c1"}},
    ]
]
GENERATED = {
    "generations": [
        [{"text": "It is sunny.", "message": {"id": ["x", "AIMessage"], "kwargs": {"content": "It is sunny."}}}]
    ]
}
CHOSEN = {"choices": [{"index": 0, "message": ANSWERED[0], "finish_reason": "stop"}]}
RESPONSES = [
    {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
    {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": '{"city": "Paris"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
]
RESPONDED = {"output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is sunny."}]}]}
LANGSMITH = {"langsmith.span.kind": "llm"}
SPANS: dict[str, Span] = {
    "OpenTelemetry, attributes": Span.from_attributes(name="chat m", attributes=OTEL),
    "OpenTelemetry, nested attributes": Span.from_attributes(
        name="chat m",
        attributes={
            **{key: value for key, value in OTEL.items() if not key.endswith("messages")},
            **flat("gen_ai.input.messages", OTEL_PROMPT),
            **flat("gen_ai.output.messages", OTEL_ANSWER),
        },
    ),
    "OpenInference": Span.from_attributes(name="ChatCompletion", attributes=OPENINFERENCE),
    "OpenInference, whole": Span.from_attributes(
        name="x",
        attributes={
            "openinference.span.kind": "LLM",
            "input.value": json.dumps(CHAT),
            "output.value": json.dumps(CHOSEN),
        },
    ),
    "Vercel": Span.from_attributes(name="ai.generateText.doGenerate", attributes=VERCEL),
    "LangSmith, LangChain": Span.from_attributes(
        name="ChatOpenAI",
        attributes={
            **LANGSMITH,
            "gen_ai.prompt": json.dumps({"messages": LANGCHAIN}),
            "gen_ai.completion": json.dumps(GENERATED),
        },
    ),
    "LangSmith, OpenAI": Span.from_attributes(
        name="ChatOpenAI",
        attributes={**LANGSMITH, "gen_ai.prompt": json.dumps(CHAT), "gen_ai.completion": json.dumps(CHOSEN)},
    ),
    "LangSmith, Responses": Span.from_attributes(
        name="x",
        attributes={
            **LANGSMITH,
            "gen_ai.prompt": json.dumps({"instructions": "Be brief.", "input": RESPONSES}),
            "gen_ai.completion": json.dumps(RESPONDED),
        },
    ),
    "Logfire": Span.from_attributes(
        name="Chat Completion with 'm'",
        attributes={
            "request_data": json.dumps(CHAT),
            "response_data": json.dumps({"message": ANSWERED[0], "usage": None}),
        },
    ),
    "pydantic-ai": Span.from_attributes(
        name="chat m", attributes={"gen_ai.operation.name": "chat", "events": json.dumps(EVENTS)}
    ),
    "Traceloop": Span.from_attributes(
        name="ChatOpenAI.chat",
        attributes={
            "llm.request.type": "chat",
            **flat("llm.prompts", CHAT["messages"]),
            **flat("llm.completions", ANSWERED),
        },
    ),
}
with_events = Span.from_attributes(name="chat m", attributes={"gen_ai.operation.name": "chat"})
with_events.events = [
    Event(
        name=str(one["event.name"]),
        attributes=dict[str, Any](
            (key, json.dumps(item) if isinstance(item, dict | list) else item) for key, item in one.items()
        ),
    )
    for one in EVENTS
]
SPANS["OpenTelemetry, one event a message"] = with_events
with_details = Span.from_attributes(name="chat m", attributes={"gen_ai.operation.name": "chat"})
with_details.events = [Event(name="gen_ai.client.inference.operation.details", attributes=OTEL)]
SPANS["OpenTelemetry, one event a call"] = with_details


@pytest.mark.parametrize("name", SPANS)
def test_messages_and_triplets_are_read_from_every_convention(name: str) -> None:
    messages, triplets = agl.TraceToMessages(), agl.TracerTraceToTriplet()
    (entry,) = messages([SPANS[name]])
    assert entry["messages"] == [*ASKED, *ANSWERED] and messages.oddities == {}
    (triplet,) = triplets([SPANS[name], reward(0.5)])
    assert [one["role"] for one in triplet.prompt["raw_content"]] == ["system", "user", "assistant", "tool"]
    assert [(one["role"], one["content"]) for one in triplet.response["raw_content"]] == [("assistant", "It is sunny.")]
    assert triplet.reward == 0.5 and triplets.oddities == {}
    assert check_trace([SPANS[name], reward(0.5)], {}, [], False) == []


def test_answers_that_call_tools_and_images_and_tools_are_read() -> None:
    image = {"type": "image_url", "image_url": {"url": "http://x/1.png"}}
    contents = [
        {"message_content": {"type": "text", "text": "What?"}},
        {"message_content": {"type": "image", "image": {"image": {"url": "http://x/1.png"}}}},
    ]
    one = Span.from_attributes(
        attributes={
            "openinference.span.kind": "LLM",
            **flat("llm.input_messages", [{"message": {"role": "user", "contents": contents}}]),
            "llm.output_messages.0.message.role": "assistant",
            "llm.tools.0.tool.json_schema": json.dumps({"type": "function", "function": {"name": "f", "parameters": {}}}),
        }
    )
    two = Span.from_attributes(
        attributes={
            **{key: value for key, value in VERCEL.items() if key != "ai.response.text"},
            "ai.response.toolCalls": json.dumps([{"toolCallId": "c1", "toolName": "look_up", "input": '{"city": "Paris"}'}]),
            "ai.prompt.tools": [json.dumps({"type": "function", "name": "f", "inputSchema": {"type": "object"}})],
        }
    )
    three = Span.from_attributes(attributes=dict(OTEL))
    three.attributes["model_request_parameters"] = json.dumps(
        {"function_tools": [{"name": "f", "parameters_json_schema": {"type": "object"}}]}
    )
    first, second, third = agl.TraceToMessages()([one, two, three])
    assert third["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert first["messages"][0]["content"] == [{"type": "text", "text": "What?"}, image]  # type: ignore[typeddict-item]
    assert agl.TracerTraceToTriplet()([one])[0].prompt["image_urls"] == ["http://x/1.png"]
    assert first["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert second["messages"][-1] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert second["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def test_what_cannot_be_read_is_counted() -> None:
    adapter = agl.TraceToMessages()
    strange = Span.from_attributes(attributes={"gen_ai.operation.name": "chat", "gen_ai.input.messages": "[7]"})
    silent = Span.from_attributes(attributes={"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"})
    assert adapter([strange, silent]) == []
    assert adapter.oddities == {
        "messages in 'gen_ai.input.messages' that could not be read": 1,
        "model call of which no message could be read": 2,
    }
    triplets = agl.TracerTraceToTriplet()
    assert triplets([strange, silent]) == []
    assert triplets.oddities == adapter.oddities


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["tool", "text", "{", "[[]]", "c1"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["role", "content", "parts", "type", "message", "tool_calls", "id", "kwargs", "messages", "choices",
                         "input", "output", "function", "name", "text", "image", "response", "event.name"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
KEYS = sorted({key for one in SPANS.values() for key in one.attributes} | {"ai.prompt", "gen_ai.tool.definitions", "llm.tools"})


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_no_value_makes_reading_fail(fields: dict[str, Any]) -> None:
    odd = Span.from_attributes(attributes={key: json.dumps(value) for key, value in fields.items()})
    exchange_of(odd)
    for found in (agl.TraceToMessages()([odd]), agl.TracerTraceToTriplet(llm_call_match="")([odd])):
        assert len(found) <= 1


def framework(name: str, parent: Span | None = None, **attributes: Any) -> Span:
    return span(name, 1, 5, parent=parent, **attributes)


def test_spans_around_a_call_are_no_calls() -> None:
    agent = framework("invoke_agent a", gen_ai__operation__name="invoke_agent", gen_ai__request__model="m")
    chat = framework("chat m", agent, gen_ai__operation__name="chat", gen_ai__request__model="m", **{
        "gen_ai.input.messages": '["Say a"]', "gen_ai.output.messages": '["a"]'})  # fmt: skip
    client = call("a", 2, 4, parent=chat, response_token_ids=[1], prompt_token_ids=[2], gen_ai__request__model="m")
    spans = [client, chat, agent, reward(1.0, 6)]
    agent.attributes["gen_ai.agent.name"] = "weather"
    (triplet,) = agl.TracerTraceToTriplet(llm_call_match="chat", agent_match="weather")(spans)
    assert triplet.response["token_ids"] == [1] and triplet.reward == 1.0
    assert len(agl.TraceToMessages()(spans)) == 1
    assert check_trace(spans, {}, [], True) == [] and check_trace(spans[1:], {}, [], True) == ["no_token_ids"]
    again = call("b", 4, 4.5, parent=chat, response_token_ids=[1], gen_ai__request__model="m")
    assert [one[0] for one in answers(agl.TracerTraceToTriplet()([client, again, chat, agent]))] == ["a", "b"]


def test_two_instrumentations_beside_each_other_record_one_call() -> None:
    client = call("a", 2, 4, response_token_ids=[1])
    other = span("ChatOpenAI", 1, 5, **OPENINFERENCE)
    other.attributes["llm.output_messages.0.message.content"] = "a"
    client.__pydantic_extra__ = {"instrumentation_scope": {"name": "one", "version": ""}}
    other.__pydantic_extra__ = {"instrumentation_scope": {"name": "two", "version": ""}}
    (triplet,) = agl.TracerTraceToTriplet()([other, client])
    assert triplet.response["token_ids"] == [1]
    other.__pydantic_extra__ = client.__pydantic_extra__
    assert len(agl.TracerTraceToTriplet()([other, client])) == 2, "one instrumentation records each call once"


def test_a_circle_of_parents_loses_no_call() -> None:
    one = call("a", 1, 2, id="00000000000000aa", parent="00000000000000bb", gen_ai__request__model="m")
    two = call("b", 3, 4, id="00000000000000bb", parent="00000000000000aa", gen_ai__request__model="m")
    assert distinct_calls(candidates_of([one, two])) == [0, 1]


def test_a_reward_goes_to_the_nearest_call_that_is_kept() -> None:
    spans = [call("a", 1, 2, prompt_token_ids=[1], response_token_ids=[2]), call("b", 3, 4), reward(0.5, 5)]
    assert answers(agl.TracerTraceToTriplet(_skip_empty_token_spans=True)(spans)) == [("a", 0.5)]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([call("a", 11, 12), reward(0.5, 3)], [0.5]),
        ([call("a", 11, 12), call("b", 13, 14), reward(0.1, 3), reward(0.5, 4)], [None, 0.5]),
        ([call("a", 2, 1), call("b", 4, 3), reward(0.5, 5)], [None, 0.5]),
        ([call("a", 1, 2), reward(0.1, 3), call("b", 14, 13), reward(0.5, 4)], [0.1, 0.5]),
        ([reward(0.5, 3), call("a", 11, 12)], [None]),
    ],
)
def test_clocks_that_disagree_lose_no_final_reward_and_no_call(spans: list[Span], expected: list[Any]) -> None:
    assert [triplet.reward for triplet in agl.TracerTraceToTriplet()(spans)] == expected


def test_the_clock_of_another_host_puts_no_call_below_a_judge() -> None:
    judge = span("agentlightning.operation", 0, 10, agentlightning__operation__name="agentlightning.reward")
    spans = [call("a", 1, 2), judge, reward(0.5, 11)]
    for one, host in zip(spans, ("gpu", "laptop", "laptop")):
        one.resource = OtelResource(attributes={"host.name": host}, schema_url="")
    assert answers(agl.TracerTraceToTriplet()(spans)) == [("a", 0.5)]
    spans[0].resource = spans[1].resource
    assert agl.TracerTraceToTriplet()(spans) == []


@pytest.mark.parametrize(
    ("value", "text", "odd"),
    [
        ('{"city": "Paris"}', '{"city": "Paris"}', 0),
        ("{'city': 'Paris'}", '{"city": "Paris"}', 0),
        (["a", "b"], '["a", "b"]', 0),
        (True, "true", 0),
        ("Paris", "Paris", 1),
        ("", "", 0),
    ],
)
def test_arguments_of_tools_are_json(value: Any, text: str, odd: int) -> None:
    fields = {"gen_ai.completion.0.tool_calls.0.name": "f", "gen_ai.completion.0.tool_calls.0.arguments": value}
    adapter = agl.TraceToMessages()
    made = call("a")
    made.attributes.update(fields)
    ((_, answer),) = (entry["messages"] for entry in adapter([made]))
    assert answer["tool_calls"][0]["function"]["arguments"] == text  # type: ignore[typeddict-item]
    assert adapter.oddities["arguments of a tool call that are no JSON"] == odd
    tool = span("tool", parent=made, tool__name="f", tool__parameters=value)
    del made.attributes["gen_ai.completion.0.tool_calls.0.name"]
    ((_, answer),) = (entry["messages"] for entry in agl.TraceToMessages()([made, tool]))
    assert answer["tool_calls"][0]["function"]["arguments"] == text  # type: ignore[typeddict-item]


def test_the_parameters_of_older_releases_are_taken() -> None:
    judge = span("agentlightning.operation", 2, 5, agentlightning__operation__name="agentlightning.reward")
    spans = [call("a", 1, 2), call("b", 3, 4, parent=judge), judge, reward(0.5, 6)]
    tree = TraceTree.from_spans(spans)

    def found(**more: Any) -> list[Any]:
        nodes = tree.find_llm_calls(llm_call_match=r"openai\.chat\.completion", agent_match=None, **more)
        return [(node.span.attributes["gen_ai.response.id"], label) for node, label in nodes]

    known = {"b"}
    assert found(within_matching_subtree="mine", within_reward=None, within_llm_call=False) == [("a", "mine"), ("b", "mine")]
    assert found(within_reward=False, existing_llm_call_response_ids=known) == [("a", "*")] and known == {"a", "b"}
    assert found(within_reward=True) == [] and len(found(within_reward=None, within_llm_call=None)) == 2
    calls = [node for node, _ in tree.find_llm_calls()]
    assert list(tree.match_rewards("first_occurrence", calls).values()) == [0.5]
    rewarded = next(node for node in tree.traverse() if node.is_reward_span() and node.span is not judge)
    assert rewarded.maybe_reward_dict() == {"type": "reward", "value": 0.5} and calls[0].maybe_reward_dict() == {}
    assert tree.span_to_triplet(spans[0], "x").metadata["agent_name"] == "x"
