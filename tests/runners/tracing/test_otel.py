"""The tracer on the real OpenAI client: what a call leaves in the store, and whose attempt it belongs to."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from opentelemetry import trace

import agentlightning as agl
from agentlightning.core.model.rollout import AttemptedRollout
from agentlightning.core.model.span import Span
from agentlightning.core.spans.links import extract_links_from_attributes, make_link_attributes, query_linked_spans
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.runners.tracing.provider import get_tracer, get_tracer_provider

from ...openai_stub import ANSWER, Stub, openai_stub

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "Weather of a city", "parameters": {"type": "object"}},
    }
]


@pytest.fixture
def tracer(store: InMemoryLightningStore) -> Iterator[agl.OtelTracer]:
    """The tracer of a Trainer: it puts a root span around each attempt."""
    made = agl.AgentOpsTracer(agentops_managed=False)
    with made.lifespan(store):
        yield made


def client(stub: Stub) -> Any:
    return OpenAI(base_url=stub.base_url, api_key="none", max_retries=0)


def inside(tracer: agl.OtelTracer, rollout: AttemptedRollout) -> Any:
    return tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id)


async def recorded(store: InMemoryLightningStore, rollout: AttemptedRollout) -> list[Span]:
    return list(await store.query_spans(rollout.rollout_id))


async def test_a_chat_completion_is_stored_under_the_names_of_the_contract(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub
) -> None:
    rollout = await store.start_rollout("x")
    async with inside(tracer, rollout):
        client(stub).chat.completions.create(model="m", messages=QUESTION, temperature=0.5, max_tokens=20)
    call, session = await recorded(store, rollout)
    assert (call.name, call.status.status_code) == ("openai.chat.completion", "OK")
    expected = {
        "gen_ai.system": "OpenAI",
        "gen_ai.request.type": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.streaming": False,
        "gen_ai.prompt.0.role": "system",
        "gen_ai.prompt.0.content": "Be brief.",
        "gen_ai.prompt.1.role": "user",
        "gen_ai.prompt.1.content": "Why is the sky blue?",
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": ANSWER,
        "gen_ai.completion.0.finish_reason": "stop",
        "gen_ai.response.id": "chatcmpl-stub",
        "gen_ai.response.model": "m",
        "gen_ai.openai.system_fingerprint": "fp_stub",
        "gen_ai.usage.prompt_tokens": 11,
        "gen_ai.usage.completion_tokens": 7,
        "gen_ai.usage.total_tokens": 18,
    }
    assert {key: call.attributes.get(key) for key in expected} == expected
    assert "gen_ai.input.messages" in call.attributes
    assert (session.name, session.parent_id) == (f"{rollout.rollout_id}.session", None)
    assert (call.parent_id, call.trace_id) == (session.span_id, session.trace_id)
    assert [call.sequence_id, session.sequence_id] == [1, 2]
    assert [span.sequence_id for span in tracer.get_last_trace()] == [1, 2]


async def test_tool_calls_are_child_spans_that_end_before_their_parent(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub
) -> None:
    rollout = await store.start_rollout("x")
    async with inside(tracer, rollout):
        client(stub).chat.completions.create(model="m", messages=QUESTION, tools=TOOLS)
    tool, call, _ = await recorded(store, rollout)
    assert (tool.name, tool.parent_id) == ("tool_call.get_weather", call.span_id)
    assert tool.attributes["tool.parameters"] == '{"city": "Paris"}'
    assert tool.attributes["tool.call.id"] == "call_1"
    assert call.attributes["gen_ai.completion.0.finish_reason"] == "tool_calls"
    assert call.attributes["gen_ai.completion.0.tool_calls.0.name"] == "get_weather"
    assert call.attributes["gen_ai.request.functions.0.name"] == "get_weather"


async def test_streams_sync_and_async_are_recorded_whole(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub
) -> None:
    rollout = await store.start_rollout("x")
    async with inside(tracer, rollout):
        usage: Any = {"stream_options": {"include_usage": True}}
        for _ in client(stub).chat.completions.create(model="m", messages=QUESTION, stream=True, **usage):
            pass
        async with AsyncOpenAI(base_url=stub.base_url, api_key="none") as other:
            messages: Any = QUESTION
            async for _ in await other.chat.completions.create(model="m", messages=messages, stream=True, **usage):
                pass
    calls = (await recorded(store, rollout))[:-1]
    assert [span.name for span in calls] == ["openai.chat.completion"] * 2
    for span in calls:
        assert span.attributes["gen_ai.completion.0.content"] == ANSWER
        assert span.attributes["gen_ai.usage.total_tokens"] == 18
        assert span.attributes["gen_ai.request.streaming"] is True
        assert span.attributes["llm.openai.stream.chunk_count"] == 10
        assert span.events == []


async def test_a_stream_that_nobody_finished_is_stored_with_its_prompt(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub
) -> None:
    rollout = await store.start_rollout("x")
    async with inside(tracer, rollout):
        stream = client(stub).chat.completions.create(model="m", messages=QUESTION, stream=True)
        next(iter(stream))
    call, session = await recorded(store, rollout)
    assert call.attributes["gen_ai.prompt.1.content"] == "Why is the sky blue?"
    assert session.name.endswith(".session")
    stream.close()


async def test_an_error_of_the_api_is_recorded_with_its_exception(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub
) -> None:
    rollout = await store.start_rollout("x")
    async with inside(tracer, rollout):
        with pytest.raises(BadRequestError):
            client(stub).chat.completions.create(model="broken", messages=QUESTION)
    call = (await recorded(store, rollout))[0]
    assert call.status.status_code == "ERROR" and "The model is broken" in (call.status.description or "")
    (event,) = call.events
    assert event.name == "exception" and "BadRequestError" in str(event.attributes["exception.type"])


async def test_completions_responses_and_embeddings_are_recorded(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub
) -> None:
    rollout = await store.start_rollout("x")
    async with inside(tracer, rollout):
        client(stub).completions.create(model="m", prompt="Review: fine\nSentiment:")
        client(stub).responses.create(model="m", input="Why?", instructions="Be brief.")
        client(stub).embeddings.create(model="m", input="x")
    text, response, embedding, _ = await recorded(store, rollout)
    assert text.name == "openai.completion"
    assert text.attributes["gen_ai.prompt.0.content"] == "Review: fine\nSentiment:"
    assert text.attributes["gen_ai.completion.0.content"] == " positive"
    assert response.name == "openai.responses.create"
    assert response.attributes["gen_ai.completion.0.content"] == ANSWER
    assert response.attributes["gen_ai.usage.prompt_tokens"] == 11
    assert embedding.name == "openai.embeddings"


async def test_attempts_side_by_side_keep_their_spans_apart(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub
) -> None:
    async def attempt(number: int) -> tuple[AttemptedRollout, list[str]]:
        rollout = await store.start_rollout(number)
        async with inside(tracer, rollout):
            async with AsyncOpenAI(base_url=stub.base_url, api_key="none") as other:
                for _ in range(3):
                    await other.chat.completions.create(
                        model="m", messages=[{"role": "user", "content": f"attempt {number}"}]
                    )
            agl.emit_reward(number)
        return rollout, [span.span_id for span in tracer.get_last_trace()]

    for number, (rollout, last) in enumerate(await asyncio.gather(*(attempt(n) for n in range(4)))):
        spans = await recorded(store, rollout)
        prompts = [span.attributes["gen_ai.prompt.0.content"] for span in spans if "openai" in span.name]
        assert prompts == [f"attempt {number}"] * 3
        assert agl.find_final_reward(spans) == number
        assert [span.span_id for span in spans] == last
        assert len({span.trace_id for span in spans}) == 1


async def test_spans_of_threads_and_of_the_global_api_belong_to_the_attempt(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub
) -> None:
    rollout = await store.start_rollout("x")
    async with inside(tracer, rollout):
        thread = threading.Thread(
            target=lambda: client(stub).chat.completions.create(model="m", messages=QUESTION)  # no context of ours
        )
        thread.start()
        await asyncio.to_thread(thread.join)
        with trace.get_tracer("by hand").start_as_current_span("manual"):
            pass
    assert {"openai.chat.completion", "manual"} < {span.name for span in await recorded(store, rollout)}


async def test_calls_outside_of_an_attempt_are_not_recorded(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub
) -> None:
    rollout = await store.start_rollout("x")
    client(stub).chat.completions.create(model="m", messages=QUESTION)
    async with inside(tracer, rollout):
        pass
    client(stub).chat.completions.create(model="m", messages=QUESTION)
    assert [span.name for span in await recorded(store, rollout)] == [f"{rollout.rollout_id}.session"]


async def test_spans_arrive_while_the_agent_runs(store: InMemoryLightningStore, tracer: agl.OtelTracer) -> None:
    rollout = await store.start_rollout("x")
    async with inside(tracer, rollout):
        agl.emit_message("early")
        for _ in range(200):
            if await recorded(store, rollout):
                break
            await asyncio.sleep(0.01)
        assert [agl.get_message_value(span) for span in await recorded(store, rollout)] == ["early"]
        attempt = None
        for _ in range(200):  # the sign of life follows the span into the log
            attempt = await store.get_latest_attempt(rollout.rollout_id)
            if attempt is not None and attempt.status == "running":
                break
            await asyncio.sleep(0.01)
        assert attempt is not None and attempt.status == "running"


async def test_one_span_that_the_store_refuses_does_not_cost_the_others(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = store.add_many_spans

    async def picky(spans: Any) -> Any:
        if any(span.name == "agentlightning.message" for span in spans):
            raise agl.PayloadTooLarge(limit=1, size=2)
        return await accept(spans)

    monkeypatch.setattr(store, "add_many_spans", picky)
    rollout = await store.start_rollout("x")
    async with inside(tracer, rollout):
        agl.emit_message("too large")
        agl.emit_reward(1)
    assert agl.find_final_reward(await recorded(store, rollout)) == 1


async def test_operations_nest_and_record_their_exception_once(
    store: InMemoryLightningStore, tracer: agl.OtelTracer
) -> None:
    @agl.operation
    def divide(a: int, b: int = 0) -> float:
        agl.emit_message("dividing")
        return a / b

    rollout = await store.start_rollout("x")
    async with inside(tracer, rollout):
        assert divide(6, b=3) == 2
        with pytest.raises(ZeroDivisionError):
            divide(1)
    message, good, _, bad, _ = await recorded(store, rollout)
    assert message.parent_id == good.span_id
    assert good.attributes["agentlightning.operation.input.b"] == 3
    assert good.attributes["agentlightning.operation.output"] == 2
    assert bad.status.status_code == "ERROR" and [event.name for event in bad.events] == ["exception"]


async def test_ids_come_together_and_after_the_start(store: InMemoryLightningStore, tracer: agl.OtelTracer) -> None:
    with pytest.raises(ValueError):
        tracer.trace_context(rollout_id="ro-1")
    with pytest.raises(RuntimeError):
        agl.OtelTracer().trace_context()
    async with tracer.trace_context("free"):
        agl.emit_reward(0.5)
    assert [span.rollout_id for span in tracer.get_last_trace()] == ["rollout-dummy"] * 2
    assert agl.get_active_tracer() is None


async def test_a_span_that_cannot_be_translated_does_not_fail_where_it_ends(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = await store.start_rollout("x")
    async with tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id) as otel:
        otel.start_span(7).end()  # type: ignore[arg-type]
        agl.emit_message("goes on")
    spans = await store.query_spans(rollout.rollout_id)
    assert "Span 7 of" in caplog.text and "goes on" in [agl.get_message_value(span) for span in spans]


async def test_an_otel_tracer_adds_no_span_and_every_span_names_its_attempt(store: InMemoryLightningStore) -> None:
    rollout = await store.start_rollout("x")
    tracer = agl.OtelTracer()
    with tracer.lifespan(store):
        async with inside(tracer, rollout) as tracing:
            with tracing.start_as_current_span("step"):
                agl.emit_message("hello")
            agl.emit_reward(1.0)
    spans = await recorded(store, rollout)
    assert [span.name for span in spans] == ["agentlightning.message", "step", "agentlightning.annotation"]
    assert [span.parent_id for span in spans] == [spans[1].span_id, None, None]
    for span in spans:
        ids = {key: span.resource.attributes[f"agentlightning.{key}"] for key in ("rollout_id", "attempt_id")}
        assert ids == {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}


def test_spans_are_whole_whatever_opentelemetrys_environment_says(tmp_path: Path) -> None:
    """In a process of its own: the variables are read where the provider is made and the client is patched."""
    program = tmp_path / "program.py"
    program.write_text(_WHOLE, encoding="utf-8")
    hostile = {
        "OTEL_SDK_DISABLED": "true",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_PYTHON_TRACER_PROVIDER": "there_is_no_such_provider",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "there_is_no_such_detector",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=other",
        "TRACELOOP_TRACE_CONTENT": "false",
        **{f"OTEL_{kind}ATTRIBUTE_COUNT_LIMIT": "1" for kind in ("", "SPAN_", "EVENT_", "LINK_")},
        **{f"OTEL_{kind}ATTRIBUTE_VALUE_LENGTH_LIMIT": "3" for kind in ("", "SPAN_")},
        "OTEL_SPAN_EVENT_COUNT_LIMIT": "0",
        "OTEL_SPAN_LINK_COUNT_LIMIT": "0",
    }
    with openai_stub() as stub:
        run = subprocess.run(
            [sys.executable, str(program), stub.base_url],
            env={**os.environ, **hostile},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert run.returncode == 0, run.stderr
    found = {span["name"]: span for span in json.loads(run.stdout)}
    annotation = found["agentlightning.annotation"]["attributes"]
    assert len([key for key in annotation if key.endswith(".value")]) == 200
    operation = found["agentlightning.operation"]
    assert len(operation["attributes"]) > 160 and operation["status"]["status_code"] == "ERROR"
    assert operation["events"][0]["attributes"]["exception.message"] == "a long message"
    call = found["openai.chat.completion"]["attributes"]
    assert (call["gen_ai.prompt.0.content"], call["gen_ai.completion.0.content"]) == ("Why?", ANSWER)
    assert found["by hand"]["attributes"]["text"] == "longer than three" and len(found["by hand"]["links"]) == 1
    assert found["by hand"]["resource"]["attributes"]["service.name"] == "agentlightning"


_WHOLE = """
import asyncio
import json
import sys
import threading

import agentlightning as agl
from openai import OpenAI
from opentelemetry import trace


def call():
    OpenAI(base_url=sys.argv[1], api_key="none").chat.completions.create(
        model="m", messages=[{"role": "user", "content": "Why?"}]
    )


async def main():
    store = agl.open_store("memory://")
    rollout = await store.start_rollout("x")
    tracer = agl.OtelTracer()
    with tracer.lifespan(store):
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with tracer.trace_context(**ids) as tracing:
            agl.emit_reward({f"rubric_{number}": number / 200 for number in range(200)}, primary_key="rubric_7")
            try:
                with agl.operation(kind="plan") as block:
                    block.set_input(history=[{"role": "user", "content": f"turn {number}"} for number in range(80)])
                    raise RuntimeError("a long message")
            except RuntimeError:
                pass
            with tracing.start_as_current_span("outer") as outer:
                link = trace.Link(outer.get_span_context(), {"why": "because"})
                tracing.start_span("by hand", links=[link], attributes={"text": "longer than three"}).end()
            thread = threading.Thread(target=call)  # a thread without the context of the attempt
            thread.start()
            await asyncio.to_thread(thread.join)
    print(json.dumps([span.model_dump(mode="json") for span in await store.query_spans(rollout.rollout_id)]))
    store.close()


asyncio.run(main())
"""


async def test_links_match_the_ids_of_opentelemetrys_spans(tracer: agl.OtelTracer) -> None:
    async with tracer.trace_context():
        with get_tracer().start_as_current_span("by hand") as made:
            pass
        with get_tracer(use_active_span_processor=False).start_as_current_span("unheard"):
            pass
    recorded = next(span for span in tracer.get_last_trace() if span.name == "by hand")
    links = extract_links_from_attributes(make_link_attributes({"span_id": recorded.span_id}))
    assert query_linked_spans([made], links) == [made]
    assert "unheard" not in {span.name for span in tracer.get_last_trace()}


async def test_the_provider_is_one_whose_spans_are_recorded(tracer: agl.OtelTracer) -> None:
    async with tracer.trace_context():
        with get_tracer_provider().get_tracer("mine").start_as_current_span("by hand"):
            pass
    assert "by hand" in {span.name for span in tracer.get_last_trace()}
