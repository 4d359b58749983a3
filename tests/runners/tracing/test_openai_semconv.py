"""The translation of the OpenAI instrumentation's spans, on spans recorded once per version of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentlightning.core.model.span import Event, Span, TraceStatus
from agentlightning.runners.tracing.openai_semconv import normalised

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("openai-instrumentation-*.json"))


def span(recorded: dict[str, Any], scope: str = "opentelemetry.instrumentation.openai.v1") -> Span:
    made = Span.from_attributes(
        attributes=recorded["attributes"],
        name=recorded["name"],
        span_id="00f067aa0ba902b7",
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        start_time=10.0,
        end_time=12.0,
        status=TraceStatus(status_code=recorded["status"]),
    )
    fields = {
        "events": [Event(name=name, attributes={}, timestamp=10.5) for name in recorded["events"]],
        "instrumentation_scope": {"name": scope, "version": "x"},
    }
    return Span.model_validate({**made.model_dump(), **fields})


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_recorded_spans_come_out_as_algorithms_read_them(path: Path) -> None:
    recorded = json.loads(path.read_text(encoding="utf-8"))
    chat = normalised(span(recorded["chat"]))[-1]
    assert (chat.name, chat.status.status_code) == ("openai.chat.completion", "OK")
    assert chat.attributes["gen_ai.prompt.0.content"] == "Be brief."
    assert chat.attributes["gen_ai.completion.0.content"] == "The sky is blue because of Rayleigh scattering."
    assert chat.attributes["gen_ai.usage.prompt_tokens"] == 11
    assert recorded["chat"]["attributes"].items() <= chat.attributes.items(), "the originals stay"

    child, tools = normalised(span(recorded["tools"]))
    assert (child.name, child.parent_id, child.end_time) == ("tool_call.get_weather", tools.span_id, tools.end_time)
    parts = json.loads(str(tools.attributes["gen_ai.prompt.0.content"]))
    assert [part["type"] for part in parts] == ["text", "image_url"]
    assert tools.attributes["gen_ai.prompt.1.tool_calls.0.arguments"] == '{"x": 1}'
    assert tools.attributes["gen_ai.prompt.2.tool_call_id"] == "call_0"
    assert tools.attributes["gen_ai.prompt.2.content"] == "a cat"
    assert json.loads(str(tools.attributes["gen_ai.request.functions.0.parameters"]))["type"] == "object"

    stream = normalised(span(recorded["stream"]))[-1]
    assert stream.attributes["llm.openai.stream.chunk_count"] == 10 and stream.events == []
    assert stream.attributes["gen_ai.streaming.time_to_first_token"] == 0.5
    assert stream.attributes["gen_ai.streaming.time_to_generate"] == 1.5

    error = normalised(span(recorded["error"]))[-1]
    assert error.status.status_code == "ERROR" and [event.name for event in error.events] == ["exception"]
    assert normalised(span(recorded["completion"]))[-1].attributes["gen_ai.completion.0.content"] == " positive"
    assert normalised(span(recorded["response"]))[-1].name == "openai.responses.create"


def test_the_same_span_translates_to_the_same_spans() -> None:
    recorded = json.loads(FIXTURES[0].read_text(encoding="utf-8"))["tools"]
    assert normalised(span(recorded)) == normalised(span(recorded))


def test_spans_of_others_and_damaged_ones_are_left_alone() -> None:
    recorded = json.loads(FIXTURES[0].read_text(encoding="utf-8"))["chat"]
    foreign = span(recorded, scope="somebody.else")
    assert normalised(foreign) == [foreign]
    for broken in ("{", "7", "[7]", '[{"parts": 7}]'):
        recorded["attributes"]["gen_ai.output.messages"] = broken
        assert normalised(span(recorded))[-1].name == "openai.chat.completion"
