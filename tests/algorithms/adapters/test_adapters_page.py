"""The page on adapters is true: its examples run as printed, on spans of the agent that it describes."""

from __future__ import annotations

import doctest
from typing import Any

import agentlightning as agl
from agentlightning.core.model.span import Span

from ...sources import ROOT
from .traces import ask, record

PAGE = ROOT / "docs" / "how-to" / "adapters.md"


async def agent(client: Any) -> None:
    for question, value in (("Why is the sky blue?", 0.25), ("And at night?", 1.0)):
        messages = [{"role": "user", "content": question}]
        client.chat.completions.create(model="m-tokens", messages=messages)
        agl.emit_reward(value)


def left_by_the_agent() -> list[Span]:
    spans = record(agent)
    for span in spans:
        if "gen_ai.response.id" in span.attributes:
            span.attributes["gen_ai.response.id"] = span.span_id  # the stub gives all its answers one id
    return spans


def test_the_examples_of_the_page_run_as_printed() -> None:
    # Fences end a block of code; doctest would take them for expected output.
    text = PAGE.read_text(encoding="utf-8").replace("```", "")
    test = doctest.DocTestParser().get_doctest(text, {"spans": left_by_the_agent()}, PAGE.name, str(PAGE), 0)
    assert len(test.examples) > 10
    said: list[str] = []
    result = doctest.DocTestRunner().run(test, out=said.append)
    assert result.failed == 0, "".join(said)


def test_every_adapter_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for adapter in (agl.TracerTraceToTriplet, agl.LlmProxyTraceToTriplet, agl.TraceToMessages, agl.TraceAdapter):
        assert f"`{adapter.__name__}`" in text or f"agl.{adapter.__name__}" in text


def test_token_ids_and_logprobs_of_a_recorded_call_are_in_its_triplet() -> None:
    async def asks(client: Any) -> None:
        ask(client, "hi", logprobs=True)
        client.chat.completions.create(
            model="m-tokens", messages=[{"role": "user", "content": "and now?"}], logprobs=True
        )

    adapter = agl.TracerTraceToTriplet(_skip_empty_token_spans=True)
    (triplet,) = adapter(record(asks))
    assert triplet.prompt["raw_content"][-1]["content"] == "and now?"
    assert len(triplet.response["logprobs"]) == len(triplet.response["token_ids"]) > 0
    assert triplet.response["logprobs"][0]["logprob"] == -0.5
    assert adapter.oddities["model call without token ids"] == 1
