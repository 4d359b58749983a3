"""The demo's task in a Trainer with four runners: the same result on every kind of store, also on one that goes away."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentlightning.cli.demo.reviews import of_split

from ...cli.support import document, running
from ...openai_stub import Stub, openai_stub
from ..program import Program, program

AWAY_SECONDS = 2.5
FIT = """
import json, os, sys
import agentlightning as agl
from agentlightning.cli.demo.agent import agent
from agentlightning.cli.demo.candidates import candidates
from agentlightning.cli.demo.reviews import of_split

REVIEWS = [{"id": one.review_id, "text": one.text, "label": one.label} for one in of_split("validation")[:8]]
CANDIDATES = [candidates()[number] for number in (0, 3, 5)]

@agl.algo
async def search(store, train_dataset):
    best = None
    for candidate in CANDIDATES:
        prompt = agl.PromptTemplate(template=candidate.template, engine="f-string")
        llm = agl.LLM(endpoint=os.environ["OPENAI_BASE_URL"], model="m", sampling_parameters={"max_tokens": 2})
        update = await store.add_resources({"prompt_template": prompt, "llm": llm})
        wanted = [agl.EnqueueRolloutRequest(input=one, resources_id=update.resources_id) for one in train_dataset]
        ids = [one.rollout_id for one in await store.enqueue_many_rollouts(wanted)]
        print("asked", candidate.name, flush=True)
        await store.wait_for_rollouts(ids)
        rewards = [agl.find_final_reward(await store.query_spans(one)) for one in ids]
        if best is None or sum(rewards) > best[0]:
            best = (sum(rewards), update)
    return best[1]

if __name__ == "__main__":
    agl.setup_logging()
    trainer = agl.Trainer(algorithm=search, n_runners=4, store=eval(sys.argv[1]))
    result = trainer.fit(agent, REVIEWS)
    print(json.dumps({
        "run_id": result.run_id, "outcome": result.outcome, "ids": list(result.statuses),
        "statuses": list(result.statuses.values()), "rewards": list(result.rewards.values()),
        "best": [one.name for one in CANDIDATES if one.template == result.best_resources["prompt_template"].template],
    }), flush=True)
"""
LABELS = {review.text: review.label for review in of_split("validation")}


def sentiment(body: dict[str, Any]) -> str:
    """Right where the prompt has six examples; positive otherwise. Slow enough that a store can go away meanwhile."""
    time.sleep(0.1)
    prompt = str(body["prompt"])
    asked = prompt.rpartition("Review: ")[2].partition("\n")[0]
    return f" {LABELS[asked] if prompt.count('Review: ') == 7 else 'positive'}"


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with openai_stub(answer=sentiment) as server:
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=["memory", "http", "kafka"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "kafka":
        url = str(request.getfixturevalue("kafka_url"))
        assert document("kafka", "init", "--log", url) is not None
        yield url
    elif request.param == "http":
        with running("store", "--port", "0", cwd=tmp_path) as store:
            yield re.findall(r"http://\S+", store.wait_for(store.err, "Serving"))[0]
    else:
        yield "memory://"


def check(fit: Program) -> dict[str, Any]:
    result = fit.result()
    assert "Traceback" not in fit.text, fit.text
    assert result["outcome"] == "succeeded" and result["best"] == ["instruction, 6 examples"]
    # Three prompts of eight reviews, of which half are positive: every rollout ran to its end once.
    assert result["statuses"] == ["succeeded"] * 24 and len(set(result["ids"])) == 24
    assert sum(result["rewards"][:16]) == 8.0 and result["rewards"][16:] == [1.0] * 8
    # Python's own resource tracker ends a moment after the program.
    end = time.monotonic() + 5
    while fit.group() and time.monotonic() < end:
        time.sleep(0.05)
    assert fit.group() == []
    return result


# On a file: test_trainer.py, and below behind a server.
def test_the_demos_task_is_fitted_on_every_kind_of_store(address: str, tmp_path: Path, stub: Stub) -> None:
    with program(FIT, tmp_path, repr(address), OPENAI_BASE_URL=stub.base_url) as fit:
        check(fit)
        assert "forked" not in fit.text
        assert len({line for line in fit.lines if "Started async rollouts" in line}) == 4


def test_a_store_that_is_killed_and_comes_back_costs_that_time_and_nothing_else(tmp_path: Path, stub: Stub) -> None:
    serve = ("store", "--port", str(free_port()))
    address = f"http://127.0.0.1:{serve[2]}"
    before = len(stub.requests)
    with running(*serve, cwd=tmp_path) as store:
        store.wait_for(store.err, "Serving")
        with program(FIT, tmp_path, repr(address), OPENAI_BASE_URL=stub.base_url) as fit:
            fit.says("asked 3 good examples")
            os.kill(store.process.pid, signal.SIGKILL)
            store.process.wait()
            away = time.monotonic()
            time.sleep(AWAY_SECONDS)
            assert fit.process.poll() is None, fit.text
            with running(*serve, cwd=tmp_path) as again:
                again.wait_for(again.err, "Serving")
                result = check(fit)
                took = time.monotonic() - away
    # No question was put to the model twice, and each rollout needed one attempt.
    assert len(stub.requests) - before == 24
    # What is left after the store is back takes some seconds on a busy machine.
    assert took < AWAY_SECONDS + 20
    for one in result["ids"]:
        rollout = document("show", one, "--log", str(tmp_path / ".agl" / "log.db"))
        assert len(rollout["attempts"]) == 1, rollout
