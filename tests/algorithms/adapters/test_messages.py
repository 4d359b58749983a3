"""Messages of recorded and of odd traces: what the API would take, and nothing made up."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import TypeAdapter

import agentlightning as agl
from agentlightning.algorithms.adapters.messages import TraceMessagesAdapter

from ...openai_stub import ANSWER
from .traces import TOOLS, ask, call, fixture, record, span

CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
API = TypeAdapter(list[ChatCompletionMessageParam])


def converted(*spans: Any, odd: dict[str, int] | None = None) -> list[Any]:
    adapter = agl.TraceToMessages()
    found = adapter(list(spans))
    assert adapter.oddities == (odd or {})
    for entry in found:
        API.validate_python(entry["messages"])
    json.dumps(found)
    return found


def test_a_recorded_tool_agent_becomes_conversations_of_the_api() -> None:
    async def agent(client: Any) -> None:
        first = ask(client, "Weather in Paris?", tools=TOOLS).choices[0].message
        history = [
            {"role": "user", "content": "Weather in Paris?"},
            first,
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ]
        client.chat.completions.create(model="m", messages=history)
        client.embeddings.create(model="m", input="x")
        agl.emit_reward(1.0)

    one, two = converted(*record(agent))
    assert one["messages"] == [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ]
    assert one["tools"] == TOOLS
    assert two["tools"] is None
    assert two["messages"] == [
        *one["messages"],
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        {"role": "assistant", "content": ANSWER},
    ]


def test_messages_without_roles_get_the_one_they_must_have() -> None:
    one, two = converted(*fixture("tool-agent-without-roles"), odd={"message whose role was inferred": 2})
    assert one["messages"][-1] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert one["tools"][0]["function"]["parameters"]["type"] == "object"
    assert [message["role"] for message in two["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert two["messages"][2]["tool_calls"] == [CALL]
    assert two["messages"][3] == {"role": "tool", "content": "sunny", "tool_call_id": "call_1"}


def test_a_message_whose_role_nobody_can_tell_is_left_out_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (entry,) = converted(
            call("a", gen_ai__prompt__1__content="who says this?", gen_ai__prompt__2__role="narrator"),
            odd={"message without a role": 1, "message of an unknown role": 1},
        )
    assert [message["role"] for message in entry["messages"]] == ["user", "assistant"]
    assert "message without a role (1)" in caplog.text


@pytest.mark.parametrize(
    ("attributes", "odd", "roles"),
    [
        ({"gen_ai.prompt.0": "text"}, {"message that is no mapping": 1}, ["assistant"]),
        ({"gen_ai.prompt.0.role": "tool"}, {"tool message that answers no call": 1}, ["assistant"]),
        ({"gen_ai.prompt.0.role": "human"}, {}, ["user", "assistant"]),
        ({"gen_ai.prompt.7.role": "system", "gen_ai.prompt.x": 1}, {}, ["user", "system", "assistant"]),
        ({"gen_ai.completion.0.role": "user"}, {"answer of a role other than the assistant's": 1}, ["user"]),
        ({"gen_ai.prompt.0.tool_calls.0.id": "x"}, {"tool call without a name": 1}, ["user", "assistant"]),
        ({"gen_ai.request.functions.0.description": "x"}, {"tool without a name": 1}, ["user", "assistant"]),
    ],
)
def test_one_odd_entry_costs_no_other(attributes: dict[str, Any], odd: dict[str, int], roles: list[str]) -> None:
    made = call("a")
    made.attributes.update(attributes)
    if "gen_ai.prompt.0" in attributes:
        made.attributes = {
            key: value for key, value in made.attributes.items() if not key.startswith("gen_ai.prompt.0.")
        }
    (entry,) = converted(made, odd=odd)
    assert [message["role"] for message in entry["messages"]] == roles


def test_a_tools_answer_without_an_id_answers_the_open_call() -> None:
    made = call("a")
    made.attributes.update(
        {
            "gen_ai.prompt.1.role": "assistant",
            "gen_ai.prompt.1.content": "Let me look.",
            "gen_ai.prompt.1.tool_calls.0.function.name": "look",
            "gen_ai.prompt.1.tool_calls.0.id": "call_7",
            "gen_ai.prompt.2.role": "tool",
            "gen_ai.prompt.2.content": "found",
        }
    )
    (entry,) = converted(made, odd={"tool message whose call was inferred": 1})
    assert entry["messages"][1]["content"] == "Let me look."
    assert entry["messages"][2] == {"role": "tool", "content": "found", "tool_call_id": "call_7"}


def test_parameters_that_are_no_json_leave_the_tool_without_them() -> None:
    made = call("a")
    made.attributes.update({"gen_ai.request.functions.0.name": "f", "gen_ai.request.functions.0.parameters": "{"})
    (entry,) = converted(made, odd={"parameters of a tool that are no JSON object": 1})
    assert entry["tools"] == [{"type": "function", "function": {"name": "f"}}]


def test_images_come_back_as_parts_and_texts_stay_texts() -> None:
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "http://x/1.png"}}]
    (entry,) = converted(call("[1, 2]", gen_ai__prompt__0__content=json.dumps(parts)))
    assert entry["messages"] == [{"role": "user", "content": parts}, {"role": "assistant", "content": "[1, 2]"}]


def test_spans_without_messages_give_no_entry() -> None:
    only_request = span("openai.embeddings", gen_ai__request__model="m", gen_ai__response__model="m")
    assert converted(only_request, span("x")) == [] == converted()
    assert (
        converted(
            span("x", gen_ai__prompt__0="?"),
            odd={
                "message that is no mapping": 1,
                "model call of which no message could be read": 1,
            },
        )
        == []
    )


def test_the_older_name_is_the_same_adapter() -> None:
    assert TraceMessagesAdapter is agl.TraceToMessages
