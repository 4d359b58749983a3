"""Token ids and log probabilities: on the span of the call, streamed or not, raw or parsed, where the server gives them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

import agentlightning as agl
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.runners.tracing.openai_body import ChoicesAnswer
from agentlightning.runners.tracing.openai_patch import instrument_all, uninstrument_all
from agentlightning.runners.tracing.provider import process_provider

from ...openai_stub import ANSWER, PROMPT_TOKENS, TOKENS, Stub

ASK: dict[str, Any] = {"model": "m-tokens", "messages": [{"role": "user", "content": "Why?"}], "logprobs": True}


async def _plain(stub: Stub, stream: bool) -> None:
    answer: Any = OpenAI(base_url=stub.base_url, api_key="none").chat.completions.create(**ASK, stream=stream)
    assert [piece for piece in answer] if stream else answer.choices[0].token_ids == TOKENS


async def _asynchronous(stub: Stub, stream: bool) -> None:
    client = AsyncOpenAI(base_url=stub.base_url, api_key="none")
    answer: Any = await client.chat.completions.create(**ASK, stream=stream)
    assert [piece async for piece in answer] if stream else answer.choices[0].token_ids == TOKENS


async def _raw(stub: Stub, stream: bool) -> None:
    client = OpenAI(base_url=stub.base_url, api_key="none")
    raw: Any = client.chat.completions.with_raw_response.create(**ASK)
    assert raw.parse().choices[0].message.content == ANSWER


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("call", [_plain, _asynchronous, _raw])
async def test_token_ids_and_logprobs_are_on_the_span_of_their_call(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub, call: Any, stream: bool
) -> None:
    rollout = await store.start_rollout("x")
    async with tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id):
        await call(stub, stream)
    (span,) = await store.query_spans(rollout.rollout_id, name="openai.chat.completion")
    assert span.attributes["prompt_token_ids"] == PROMPT_TOKENS
    assert span.attributes["response_token_ids"] == TOKENS
    logprobs = json.loads(str(span.attributes["logprobs.content"]))
    assert [item["token"] for item in logprobs] == ANSWER.split(" ") and logprobs[0]["logprob"] == -0.5


def test_the_patch_is_made_once_and_taken_back(stub: Stub) -> None:
    from openai.resources.chat.completions import Completions

    uninstrument_all()
    bare = Completions.create
    for _ in range(2):
        for _ in range(2):
            instrument_all(process_provider()[0])
        uninstrument_all()
        assert Completions.create is bare
    instrument_all(process_provider()[0])


@pytest.mark.parametrize("answer", [None, 7, {}, {"choices": []}, {"choices": [{"token_ids": "odd"}]}, {"choices": 3}])
def test_odd_answers_have_no_token_ids(answer: Any) -> None:
    read = ChoicesAnswer()
    read.take(answer)
    assert not {"prompt_token_ids", "response_token_ids"} & set(read.attributes())


async def _left_sync(stub: Stub) -> None:
    answer: Any = OpenAI(base_url=stub.base_url, api_key="none").chat.completions.create(**ASK, stream=True)
    assert [next(answer).choices[0].token_ids for _ in range(2)] == [[token] for token in TOKENS[:2]]


async def _left_async(stub: Stub) -> None:
    async with AsyncOpenAI(base_url=stub.base_url, api_key="none") as client:
        answer: Any = await client.chat.completions.create(**ASK, stream=True)
        assert [(await answer.__anext__()).choices[0].token_ids for _ in range(2)] == [[token] for token in TOKENS[:2]]
        await answer.close()


@pytest.mark.parametrize("leave", [_left_sync, _left_async])
async def test_a_stream_that_is_left_keeps_the_ids_of_what_was_read(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub, leave: Any
) -> None:
    rollout = await store.start_rollout("x")
    async with tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id):
        await leave(stub)
    (span,) = await store.query_spans(rollout.rollout_id, name="openai.chat.completion")
    assert span.attributes["prompt_token_ids"] == PROMPT_TOKENS
    assert span.attributes["response_token_ids"] == TOKENS[:2]


async def test_arguments_that_are_left_out_are_not_warned_of(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = await store.start_rollout("x")
    client = OpenAI(base_url=stub.base_url, api_key="none")
    async with tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id):
        # The helper passes every argument on, given or not.
        with client.chat.completions.stream(model="m-tokens", messages=ASK["messages"]) as stream:
            assert [event.type for event in stream][-1] == "content.done"
        client.responses.create(model="m", input="Why?", temperature=openai.NOT_GIVEN)  # type: ignore[arg-type]
    (span,) = await store.query_spans(rollout.rollout_id, name="openai.chat.completion")
    assert span.attributes["response_token_ids"] == TOKENS
    assert not [name for name in span.attributes if "temperature" in name or "max_tokens" in name]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")] == []
