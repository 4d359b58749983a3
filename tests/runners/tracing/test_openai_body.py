"""Every way of asking the OpenAI client leaves the same span: text, usage and token ids, whole or as far as it was read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import APIError, AsyncOpenAI, OpenAI

import agentlightning as agl
from agentlightning.core.model.span import Span
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.runners.tracing.openai_body import (
    Answer,
    ChoicesAnswer,
    EventPieces,
    ResponseAnswer,
    request_attributes,
)

from ...openai_stub import ANSWER, PROMPT_TOKENS, TOKENS, USAGE, Stub, openai_stub

CHAT: dict[str, Any] = {"model": "m-tokens", "messages": [{"role": "user", "content": "Why?"}]}
RESPONSES: dict[str, Any] = {"model": "m-tokens", "input": "Why?", "instructions": "Be brief."}
SPANS = {"chat": "openai.chat.completion", "responses": "openai.responses.create"}
MESSAGES = {"chat": [("user", "Why?")], "responses": [("system", "Be brief."), ("user", "Why?")]}


def asked(api: str, stream: bool) -> dict[str, Any]:
    """The arguments of a call."""
    if api == "responses":
        return {**RESPONSES, **({"stream": True} if stream else {})}
    return {**CHAT, **({"stream": True, "stream_options": {"include_usage": True}} if stream else {})}


def resource(client: Any, api: str) -> Any:
    return client.chat.completions if api == "chat" else client.responses


async def plain(stub: Stub, api: str, stream: bool) -> None:
    answer = resource(OpenAI(base_url=stub.base_url, api_key="none"), api).create(**asked(api, stream))
    assert not stream or list(answer)


async def raw(stub: Stub, api: str, stream: bool) -> None:
    client = resource(OpenAI(base_url=stub.base_url, api_key="none"), api)
    answer = client.with_raw_response.create(**asked(api, stream)).parse()
    assert not stream or list(answer)


async def streaming(stub: Stub, api: str, stream: bool) -> None:
    client = resource(OpenAI(base_url=stub.base_url, api_key="none"), api)
    with client.with_streaming_response.create(**asked(api, stream)) as answer:
        assert list(answer.parse() if stream else answer.iter_lines())


async def plain_async(stub: Stub, api: str, stream: bool) -> None:
    async with AsyncOpenAI(base_url=stub.base_url, api_key="none") as client:
        answer = await resource(client, api).create(**asked(api, stream))
        assert not stream or [piece async for piece in answer]


async def raw_async(stub: Stub, api: str, stream: bool) -> None:
    async with AsyncOpenAI(base_url=stub.base_url, api_key="none") as client:
        answer = (await resource(client, api).with_raw_response.create(**asked(api, stream))).parse()
        assert not stream or [piece async for piece in answer]


async def streaming_async(stub: Stub, api: str, stream: bool) -> None:
    async with AsyncOpenAI(base_url=stub.base_url, api_key="none") as client:
        async with resource(client, api).with_streaming_response.create(**asked(api, stream)) as answer:
            assert [piece async for piece in await answer.parse()] if stream else await answer.json()


async def helper(stub: Stub, api: str, stream: bool) -> None:
    client = resource(OpenAI(base_url=stub.base_url, api_key="none"), api)
    if stream:
        arguments = {key: value for key, value in asked(api, stream).items() if key != "stream"}
        with client.stream(**arguments) as events:
            assert list(events)
    else:
        client.parse(**asked(api, stream))


FORMS = [plain, raw, streaming, plain_async, raw_async, streaming_async, helper]


async def spans_of(store: InMemoryLightningStore, tracer: agl.OtelTracer, call: Any) -> list[Span]:
    """What an attempt leaves that makes this call."""
    rollout = await store.start_rollout("x")
    async with tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id):
        await call()
    return list(await store.query_spans(rollout.rollout_id))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
async def test_every_form_of_a_call_leaves_the_same_span(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub, form: Any
) -> None:
    for api in ("chat", "responses"):
        for stream in (False, True):
            (span,) = await spans_of(store, tracer, lambda: form(stub, api, stream))  # noqa: B023
            found = span.attributes
            assert (span.name, span.status.status_code) == (SPANS[api], "OK")
            for number, (role, content) in enumerate(MESSAGES[api]):
                assert found[f"gen_ai.prompt.{number}.role"] == role
                assert found[f"gen_ai.prompt.{number}.content"] == content
            assert found["gen_ai.completion.0.content"] == ANSWER
            assert found["gen_ai.completion.0.finish_reason"] == "stop"
            assert found["gen_ai.usage.prompt_tokens"] == USAGE["prompt_tokens"]
            assert found["gen_ai.usage.completion_tokens"] == USAGE["completion_tokens"]
            assert (found["prompt_token_ids"], found["response_token_ids"]) == (PROMPT_TOKENS, TOKENS)
            assert found["gen_ai.request.streaming"] is stream
            assert ("llm.openai.stream.chunk_count" in found) is stream


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_are_kept_apart_by_their_index(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub, stream: bool
) -> None:
    async def call() -> None:
        answer: Any = OpenAI(base_url=stub.base_url, api_key="none").chat.completions.create(
            **CHAT, n=2, stream=stream, logprobs=True
        )
        assert not stream or list(answer)

    (span,) = await spans_of(store, tracer, call)
    for index in range(2):
        assert span.attributes[f"gen_ai.completion.{index}.content"] == ANSWER
        assert span.attributes[f"gen_ai.choices.{index}.token_ids"] == [100 * index + token for token in TOKENS]
        logprobs = json.loads(str(span.attributes[f"gen_ai.choices.{index}.logprobs.content"]))
        assert [item["token"] for item in logprobs] == ANSWER.split(" ")
    assert span.attributes["response_token_ids"] == TOKENS
    (triplet,) = agl.TracerTraceToTriplet()([span])
    assert triplet.response["token_ids"] == TOKENS


KEPT: list[Any] = []


async def keep(stub: Stub, api: str) -> None:
    client = OpenAI(base_url=stub.base_url, api_key="none")
    KEPT.append(resource(client, api).create(**asked(api, True)))
    _read(KEPT[-1], "The sky")


async def keep_raw(stub: Stub, api: str) -> None:
    client = OpenAI(base_url=stub.base_url, api_key="none")
    KEPT.append(resource(client, api).with_raw_response.create(**asked(api, True)).parse())
    _read(KEPT[-1], "The sky")


async def close(stub: Stub, api: str) -> None:
    client = OpenAI(base_url=stub.base_url, api_key="none")
    with resource(client, api).create(**asked(api, True)) as answer:
        _read(answer, "The sky")


async def keep_async(stub: Stub, api: str) -> None:
    KEPT.append(AsyncOpenAI(base_url=stub.base_url, api_key="none"))
    KEPT.append(await resource(KEPT[-1], api).create(**asked(api, True)))
    text = ""
    while text.strip() != "The sky":
        text += _text_of(await anext(KEPT[-1]))


def _read(answer: Any, until: str) -> None:
    text = ""
    while text.strip() != until:
        text += _text_of(next(answer))


def _text_of(piece: Any) -> str:
    if hasattr(piece, "choices"):
        return piece.choices[0].delta.content or ""
    return piece.delta if piece.type == "response.output_text.delta" else ""


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("leave", [keep, keep_raw, close, keep_async], ids=lambda leave: leave.__name__)
async def test_a_stream_that_is_left_has_what_was_read_of_it(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub, leave: Any, api: str
) -> None:
    (span,) = await spans_of(store, tracer, lambda: leave(stub, api))
    assert str(span.attributes["gen_ai.completion.0.content"]).strip() == "The sky"
    if api == "chat":
        assert span.attributes["response_token_ids"] == TOKENS[:2]
    for kept in KEPT:
        closing = kept.close()
        if closing is not None:
            await closing
    KEPT.clear()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_stream_that_is_closed_ends_its_span_while_its_owner_keeps_it(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub, asynchronous: bool
) -> None:
    found: list[list[str]] = []

    async def call() -> None:
        kind = AsyncOpenAI if asynchronous else OpenAI
        client: Any = kind(base_url=stub.base_url, api_key="none")
        answer = client.chat.completions.create(**asked("chat", True))
        answer = await answer if asynchronous else answer
        assert await anext(answer) if asynchronous else next(answer)
        found.append([span.name for span in tracer.get_last_trace()])
        closing = answer.close()
        if asynchronous:
            await closing
        found.append([span.name for span in tracer.get_last_trace()])
        KEPT.append(answer)

    await spans_of(store, tracer, call)
    KEPT.clear()
    assert found == [[], [SPANS["chat"]]]


async def test_iterators_among_the_arguments_reach_the_server_and_the_span(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub
) -> None:
    async def call() -> None:
        parts: Any = ({"type": "text", "text": text} for text in ["Why", "?"])
        messages = (message for message in [{"role": "user", "content": parts}])
        OpenAI(base_url=stub.base_url, api_key="none").chat.completions.create(**{**CHAT, "messages": messages})

    (span,) = await spans_of(store, tracer, call)
    content = [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}]
    assert stub.requests[-1][1]["messages"] == [{"role": "user", "content": content}]
    assert span.attributes["gen_ai.prompt.0.content"] == "Why?"


async def test_an_answer_that_cannot_be_recorded_is_given_to_its_reader_all_the_same(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: Any) -> Any:
        raise RecursionError

    monkeypatch.setattr(ChoicesAnswer, "take", odd)
    monkeypatch.setattr(ChoicesAnswer, "attributes", odd)
    for stream in (False, True):
        (span,) = await spans_of(store, tracer, lambda: plain(stub, "chat", stream))  # noqa: B023
        assert span.status.status_code == "OK"


@pytest.mark.parametrize("form", [plain, raw, streaming_async], ids=lambda form: form.__name__)
async def test_an_error_of_the_api_ends_the_span(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    async def call() -> None:
        with pytest.raises(APIError):
            await form(stub, "chat", True)

    monkeypatch.setitem(CHAT, "model", "broken")
    (span,) = await spans_of(store, tracer, call)
    assert span.status.status_code == "ERROR" and "The model is broken" in str(span.status.description)
    assert span.attributes["error.type"] == "BadRequestError"


async def test_what_the_server_says_in_the_middle_of_a_stream_is_the_error_of_the_span(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ... import openai_stub as stub_module

    def chunks(body: Any) -> Iterator[dict[str, Any]]:
        yield {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": "one"}}]}
        yield {"error": {"message": "out of memory"}}

    async def call() -> None:
        with pytest.raises(APIError, match="out of memory"):
            await plain(stub, "chat", True)

    monkeypatch.setattr(stub_module, "_chat_chunks", chunks)
    with openai_stub() as stub:
        (span,) = await spans_of(store, tracer, call)
    assert (span.status.status_code, span.status.description) == ("ERROR", "out of memory")
    assert span.attributes["gen_ai.completion.0.content"] == "one"


async def test_secrets_of_the_address_and_of_headers_are_not_in_the_span(
    store: InMemoryLightningStore, tracer: agl.OtelTracer, stub: Stub
) -> None:
    async def call() -> None:
        address = stub.base_url.replace("http://", "http://user:hunter2@")
        client = OpenAI(base_url=address, api_key="none")
        client.chat.completions.create(**CHAT, extra_headers={"X-Key": "hunter3"})

    (span,) = await spans_of(store, tracer, call)
    assert "hunter" not in span.model_dump_json() and "gen_ai.request.headers" in span.attributes


WORDS = (
    "arguments choices content content_index delta error finish_reason function function_call id image_url index input "
    "instructions item json_schema logprobs message messages model n name output output_index prompt prompt_token_ids "
    "prompt_tokens_details provider_specific_fields reasoning refusal response response_format response_token_ids role "
    "status summary text token_ids tool_calls tools type usage"
).split()
KINDS = ["response.completed", "response.output_text.delta", "response.function_call_arguments.delta", "function_call", 7]
JSON = st.recursive(
    st.none() | st.integers(-3, 3) | st.sampled_from([*KINDS, "", "x", "[" * 20_000]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=10, deadline=None)
@given(JSON)
def test_no_answer_and_no_question_is_odd_enough_to_raise(value: Any) -> None:
    for word in WORDS:
        odd = {word: value}
        for make in (Answer, ChoicesAnswer, ResponseAnswer):
            answer = make()
            for part in (odd, {"choices": [odd]}, {"choices": [{"message": odd}]}, {"choices": [{"delta": odd}]}):
                answer.take(part)
            for kind in KINDS:
                answer.take({"type": kind, "output_index": 0, "content_index": 0, "delta": "x", **odd})
                answer.take({"type": kind, "response": {"status": "completed", "output": [odd], **odd}})
            json.dumps(answer.attributes())
        json.dumps(request_attributes(odd))
        json.dumps(request_attributes({"messages": [odd], "tools": [odd], "input": [odd]}))


@given(st.binary(max_size=40), st.integers(1, 7))
def test_events_do_not_depend_on_how_their_bytes_arrive(noise: bytes, size: int) -> None:
    body = b'data: {"a": 1}\n\n: ping\r\n\r\ndata: {"b": "\xc3\xa9"}\r\n\r\ndata: [DONE]\n\n'
    pieces = EventPieces(events=True)
    parts = [part for start in range(0, len(body), size) for part in pieces.split(body[start : start + size])]
    assert b"".join(parts) == body
    assert [found for part in parts for found in pieces.feed(part)] == [{"a": 1}, {"b": "é"}] and pieces.done
    assert list(pieces.end()) == []
    odd = EventPieces(events=noise[:1] < b"a")
    list(odd.feed(noise))
    list(odd.end())
