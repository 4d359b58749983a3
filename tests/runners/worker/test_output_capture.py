"""What attempts print and log: kept with their own spans, head and tail, with many attempts in one process."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.model.semconv import AGL_OUTPUT
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.runners.worker.output_capture import OutputCapture

from ..support import PROMPT, attempt_of, printed, run_two


async def test_a_hundred_megabytes_are_counted_and_their_ends_kept(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull, "w") as nowhere:  # noqa: ASYNC230
        monkeypatch.setattr(sys, "stdout", nowhere)

        def agent(task: str) -> float:
            if task == "bad":
                print("first words")
                line = "x" * 9_999 + "\n"
                for _ in range(10_000):
                    sys.stdout.write(line)
                print("last words")
            return 1.0

        attempt, spans, _ = await run_two(store, agent)
    output = printed(spans)
    assert attempt.status == "succeeded" and agl.find_final_reward(spans) == 1.0
    assert output["head"].startswith("first words\n") and output["tail"].endswith("last words\n")
    assert output["total_bytes"] == 100_000_023
    kept = len(output["head"]) + len(output["tail"])
    assert kept <= 1024 * 1024 and output["dropped_bytes"] == output["total_bytes"] - kept
    assert (attempt.metadata or {}).get("trace_lint") == ["no_model_call"]


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_output_belongs_to_its_attempt_with_many_in_one_process(
    store: InMemoryLightningStore, capsys: pytest.CaptureFixture[str], asynchronous: bool
) -> None:
    log = logging.getLogger("somebody.else")
    real = sys.stdout, sys.stderr

    def say(task: int) -> None:
        print(f"out {task}")
        sys.stderr.write(f"err {task}\n")
        sys.stdout.buffer.write(f"raw {task}\n".encode())
        log.warning("log %d", task)

    def function(task: int) -> float:
        say(task)
        time.sleep(0.01)
        say(task)
        return 1.0

    async def coroutine(task: int) -> float:
        say(task)
        await asyncio.sleep(0.01)
        await asyncio.to_thread(say, task)
        return 1.0

    await store.add_resources(PROMPT)
    rollouts = [await store.enqueue_rollout(number) for number in range(8)]
    runner = agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=8, slots=4)
    with runner.run_context(agent=coroutine if asynchronous else function, store=store):
        await runner.iter()
    for number, rollout in enumerate(rollouts):
        output = printed((await attempt_of(store, rollout))[1])
        once = f"out {number}\nerr {number}\nraw {number}\nWARNING somebody.else: log {number}\n"
        assert output["head"] == once * 2 and "dropped_bytes" not in output
        assert (output["stdout_bytes"], output["stderr_bytes"]) == (24, 12)
    assert (sys.stdout, sys.stderr) == real
    assert "out 7" in capsys.readouterr().out, "what is kept is printed as well"


async def test_quiet_attempts_and_runners_that_do_not_capture_have_no_output(store: InMemoryLightningStore) -> None:
    _, spans, _ = await run_two(store, lambda task: 1.0)
    assert AGL_OUTPUT not in [span.name for span in spans]

    def loud(task: str) -> float:
        print("hello")
        return 1.0

    _, spans, _ = await run_two(store, loud, capture_output=False)
    assert AGL_OUTPUT not in [span.name for span in spans]


def test_an_output_keeps_both_ends_exactly() -> None:
    for pieces in (1, 3, 1000):
        output, whole = OutputCapture(10, 10), b""
        for number in range(pieces):
            piece = b"%d," % number
            output.add("stdout", piece)
            whole += piece
        fields: Any = output.attributes()
        if len(whole) <= 20:
            assert fields["agentlightning.output.head"].encode() == whole
        else:
            assert fields["agentlightning.output.head"].encode() == whole[:10]
            assert fields["agentlightning.output.tail"].encode() == whole[-10:]
            assert fields["agentlightning.output.dropped_bytes"] == len(whole) - 20
