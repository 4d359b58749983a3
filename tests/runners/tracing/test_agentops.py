"""AgentOpsTracer: the tutorial's tracer works without its SDK, says so once, and claims nothing that did not happen."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.projections.store.memory_store import InMemoryLightningStore

from ...environments import CannotInstall, overlay, python_of
from ...openai_stub import ANSWER, PROMPT_TOKENS, TOKENS, Stub
from ...sources import ROOT


async def test_without_the_sdk_it_says_so_once_and_records_the_same(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "agentops", None)  # importing it raises ImportError
    tracer = agl.AgentOpsTracer(agentops_managed=True, instrument_managed=True, daemon=True)
    await store.add_resources({"prompt": "Say {x}"})
    for _ in range(2):
        rollout = await store.enqueue_rollout("task")
        runner = agl.LitAgentRunner[str](tracer=tracer, max_rollouts=1)
        with runner.run_context(agent=lambda task: 0.5, store=store):
            await runner.iter()
        names = [span.name for span in await store.query_spans(rollout.rollout_id)]
        assert names == [f"{rollout.rollout_id}.session", "agentlightning.annotation"]
    lines = [record.getMessage() for record in caplog.records]
    assert sum("AgentOps SDK is not installed" in line for line in lines) == 1
    assert not [line for line in lines if "client initialized" in line]
    assert lines[:2] == ["[Worker 0] Setting up tracer...", "[Worker 0] Instrumentation applied."]


PROGRAM = """
import asyncio, builtins, json, sys
from pathlib import Path

import agentlightning as agl

left, printing = [], builtins.print


def watch(event, args):
    if event == "socket.getaddrinfo" and args[0] not in ("127.0.0.1", "localhost", "::1", None):
        left.append(repr(args))
        raise PermissionError(f"it asks for {args[0]!r}")
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1"):
        left.append(repr(args))
        raise PermissionError(f"it connects to {args[1]!r}")


@agl.rollout
def agent(task: str, llm: agl.LLM) -> float:
    from openai import OpenAI

    client = OpenAI(base_url=llm.endpoint, api_key="none")
    for stream in (False, True):
        answer = client.chat.completions.create(
            model=llm.model, messages=[{"role": "user", "content": f"{task} {stream}"}], stream=stream
        )
        if stream:
            list(answer)
    agl.emit_reward(0.25)
    return 0.75


@agl.algo
async def once(store, train_dataset):
    for task in train_dataset:
        rollout = await store.enqueue_rollout(task)
        await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=60)


def main(url):
    store = agl.InMemoryLightningStore()
    llm = agl.LLM(endpoint=url, model="m-tokens")
    trainer = agl.Trainer(algorithm=once, n_runners=1, strategy="shm", store=store, initial_resources={"llm": llm})
    asyncio.run(store.add_resources({"llm": llm}))
    trainer.fit(agent, ["Why?", "And why that?"])
    kept = "prompt.0.content completion.0.content usage.total_tokens".split()
    found = []
    for rollout in asyncio.run(store.query_rollouts()):
        spans = asyncio.run(store.query_spans(rollout.rollout_id))
        calls = [span.attributes for span in spans if span.name == "openai.chat.completion"]
        found.append({
            "status": rollout.status,
            "names": [span.name.replace(rollout.rollout_id, "") for span in spans],
            "calls": [[call.get(f"gen_ai.{key}") for key in kept] for call in calls],
            "tokens": [[call.get(f"{side}_token_ids") for side in ("prompt", "response")] for call in calls],
            "rewards": [agl.get_reward_value(span) for span in agl.find_reward_spans(spans)],
            "final": agl.find_final_reward(spans),
            "triplets": len(agl.TracerTraceToTriplet()(spans)),
        })
    store.close()
    return found


if __name__ == "__main__":
    sys.addaudithook(watch)
    found = main(sys.argv[1])
    loaded = "agentops" in sys.modules and sys.modules["agentops"].get_client().initialized
    files = [path.name for path in Path.cwd().iterdir() if path.name.startswith("agentops")]
    print(json.dumps([found, {"sdk": loaded, "left": left, "files": files, "print": builtins.print is printing}]))
"""


def test_with_the_sdk_a_run_records_the_same_and_nothing_leaves_the_process(stub: Stub, tmp_path: Path) -> None:
    """In an environment of its own: the SDK asks for older versions of what others need in newer ones."""
    try:
        environment = overlay(Path(__file__).parent / "fixtures" / "agentops.txt")
    except CannotInstall as failure:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the AgentOps SDK cannot be installed here: {failure}")
    (tmp_path / "agentlightning").symlink_to(ROOT)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    found: list[Any] = []
    for python in (python_of(environment), Path(sys.executable)):
        run = subprocess.run(
            [python, str(program), stub.base_url],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        found.append(json.loads(run.stdout.splitlines()[-1]))
    (with_sdk, facts), (without, bare_facts) = found
    assert facts == {"sdk": True, "left": [], "files": [], "print": True} and not bare_facts["sdk"]
    assert with_sdk == without
    for rollout, question in zip(with_sdk, ("Why?", "And why that?")):
        assert [call[:2] for call in rollout["calls"]] == [[f"{question} {stream}", ANSWER] for stream in (False, True)]
        assert rollout["tokens"] == [[PROMPT_TOKENS, TOKENS]] * 2 and rollout["triplets"] == 2
        assert rollout["rewards"] == [0.25, 0.75] and rollout["final"] == 0.75
