"""Calls of LiteLLM are recorded once, whether it uses the OpenAI client or not, and whenever it is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ...openai_stub import ANSWER, PROMPT_TOKENS, TOKENS, Stub

# LiteLLM is 44 MB; this is how version 1.110.2 is built where we touch it: a decorator that keeps the function in a cell,
# an asynchronous form that calls the synchronous one in a thread, and one class for streams.
MAIN = """
import asyncio, contextvars, functools, json, urllib.request
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper


def client(original_function):
    if asyncio.iscoroutinefunction(original_function):
        @functools.wraps(original_function)
        async def wrapper(*args, **kwargs):
            return await original_function(*args, **kwargs)
    else:
        @functools.wraps(original_function)
        def wrapper(*args, **kwargs):
            return original_function(*args, **kwargs)
    return wrapper


class ModelResponse:
    def __init__(self, body):
        self.choices, self._body = body["choices"], body

    def model_dump(self, **options):
        return self._body


def _post(model, messages, api_base, stream):
    body = json.dumps({"model": model, "messages": messages, "stream": bool(stream)}).encode()
    request = urllib.request.Request(api_base + "/chat/completions", body, {"Content-Type": "application/json"})
    lines = urllib.request.urlopen(request).read().decode().splitlines()
    if not stream:
        return ModelResponse(json.loads(lines[0]))
    pieces = [line[6:] for line in lines if line.startswith("data: {")]
    return CustomStreamWrapper(ModelResponse(json.loads(piece)) for piece in pieces)


@client
def completion(model, messages, api_base=None, stream=None, acompletion=False, n=None):
    provider, _, name = model.partition("/")
    if provider == "broken":
        raise ValueError("no such provider")
    if acompletion:
        async def later():
            return _post(name, messages, api_base, stream)
        return later()
    if provider == "openai":
        from openai import OpenAI
        made = OpenAI(base_url=api_base, api_key="none").chat.completions
        raw = made.with_raw_response.create(model=name, messages=messages, stream=bool(stream)).parse()
        return CustomStreamWrapper(raw) if stream else raw
    return _post(name, messages, api_base, stream)


@client
async def acompletion(model, messages, api_base=None, stream=None, n=None):
    call = functools.partial(completion, model, messages, api_base=api_base, stream=stream, acompletion=True)
    context = contextvars.copy_context()
    return await (await asyncio.get_running_loop().run_in_executor(None, functools.partial(context.run, call)))
"""
STREAMS = """
class CustomStreamWrapper:
    def __init__(self, pieces):
        self.completion_stream = iter(pieces)

    def __iter__(self):
        return self

    def __aiter__(self):
        return self

    def __next__(self):
        return next(self.completion_stream)

    async def __anext__(self):
        try:
            return next(self.completion_stream)
        except StopIteration:
            raise StopAsyncIteration from None
"""
PROGRAM = """
import asyncio, json, sys

url, when = sys.argv[1:]
if when == "before":
    from litellm import acompletion, completion
import agentlightning as agl

MESSAGES = [{"role": "user", "content": "Why?"}]


async def main():
    global acompletion, completion
    store = agl.open_store("memory://")
    tracer, found = agl.OtelTracer(), {}
    with tracer.lifespan(store):
        if when == "after":
            from litellm import acompletion, completion

        def sync(model, stream):
            answer = completion(model, MESSAGES, api_base=url, stream=stream)
            assert list(answer) if stream else answer

        async def async_(model, stream):
            answer = await acompletion(model, messages=MESSAGES, api_base=url, stream=stream)
            assert [piece async for piece in answer] if stream else answer

        async def left(model, stream):
            left.kept = completion(model, MESSAGES, api_base=url, stream=True)
            next(left.kept), next(left.kept)

        async def broken(model, stream):
            try:
                await acompletion("broken/m", MESSAGES)
            except ValueError:
                pass

        for call in (sync, async_, left, broken):
            for model in ("other/m-tokens", "openai/m-tokens"):
                for stream in (False, True):
                    rollout = await store.start_rollout("x")
                    ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
                    async with tracer.trace_context(**ids):
                        made = call(model, stream)
                        if made is not None:
                            await made
                    spans = await store.query_spans(rollout.rollout_id)
                    found[f"{call.__name__} {model} {stream}"] = [span.model_dump(mode="json") for span in spans]
    from agentlightning.instrumentation import uninstrument_all
    from litellm.main import CustomStreamWrapper

    uninstrument_all()
    for function in (completion, acompletion, CustomStreamWrapper.__next__, CustomStreamWrapper.__anext__):
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        assert not [one for one in (function, *cells) if hasattr(one, "_agentlightning_call")], function
    store.close()
    print(json.dumps(found))


asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_each_call_leaves_one_span_like_that_of_the_openai_client(stub: Stub, tmp_path: Path, when: str) -> None:
    """``before``: an agent's module imports the functions by name, and the client is patched afterwards."""
    package = tmp_path / "litellm"
    (package / "litellm_core_utils").mkdir(parents=True)
    (package / "__init__.py").write_text("from .main import *\n", encoding="utf-8")
    (package / "main.py").write_text(MAIN, encoding="utf-8")
    (package / "litellm_core_utils" / "__init__.py").touch()
    (package / "litellm_core_utils" / "streaming_handler.py").write_text(STREAMS, encoding="utf-8")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, str(program), stub.base_url, when], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == 16
    for case, spans in found.items():
        (span,) = spans
        attributes, (kind, _, stream) = span["attributes"], case.split(" ")
        assert span["name"] == "openai.chat.completion", case
        if kind == "broken":
            assert (span["status"]["status_code"], attributes["error.type"]) == ("ERROR", "ValueError")
            continue
        assert span["status"]["status_code"] == "OK", case
        assert attributes["gen_ai.prompt.0.content"] == "Why?"
        read = TOKENS[:2] if kind == "left" else TOKENS
        text = "The sky" if kind == "left" else ANSWER
        assert (attributes["gen_ai.completion.0.content"], attributes["response_token_ids"]) == (text, read), case
        assert attributes["prompt_token_ids"] == PROMPT_TOKENS
        assert ("llm.openai.stream.chunk_count" in attributes) is (kind == "left" or stream == "True")
