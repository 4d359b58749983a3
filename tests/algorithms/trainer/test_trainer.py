"""Trainer.fit with real processes and threads, on every kind of store."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl

from ...cli.support import document, running
from ...openai_stub import openai_stub
from ..program import SEARCH, program

FIT = (
    SEARCH
    + """
if __name__ == "__main__":
    agl.setup_logging()
    arguments = eval("dict(" + sys.argv[1] + ")")
    show(agl.Trainer(algorithm=search, n_runners=4, **arguments).fit(agent, ["the sky", "the sea", "the sun"]))
"""
)
EXPECTED = {"outcome": "succeeded", "best": "Please {question}", "rewards": [0.25] * 3 + [1.0] * 3}


def check(result: dict[str, Any]) -> None:
    assert {key: result[key] for key in EXPECTED} == EXPECTED
    assert result["statuses"] == ["succeeded"] * 6


@pytest.mark.parametrize("strategy", ["cs", "shm"])
def test_fit_finds_the_better_prompt_and_keeps_its_run_in_the_default_log(tmp_path: Path, strategy: str) -> None:
    with program(FIT, tmp_path, f"strategy={strategy!r}") as fit:
        result = fit.result()
        assert "Traceback" not in fit.text and "forked" not in fit.text
        workers = {line for line in fit.lines if "Started async rollouts" in line}
        # Processes load two at a time on two processors, and six short rollouts may be over before the last has loaded.
        assert 1 <= len(workers) <= 4 if strategy == "cs" else len(workers) == 4
        assert fit.left_over() == []
    check(result)
    store: Any = agl.open_store(f"sqlite:///{tmp_path}/.agl/log.db")
    try:
        [run] = asyncio.run(store.query_runs())
    finally:
        store.close()
    assert run["run_id"] == result["run_id"] and run["outcome"] == "succeeded"
    assert run["rollout_ids"] == result["ids"] and run["train_size"] == 3
    assert run["algorithm"] == "__main__:search" and run["agent"] == "__main__:agent"


# With runners in processes: test_fit_everywhere.py.
def test_fit_in_threads_works_on_a_store_in_memory(tmp_path: Path) -> None:
    with program(FIT, tmp_path, "strategy='shm', store=agl.InMemoryLightningStore()") as fit:
        check(fit.result())
    assert not (tmp_path / ".agl").exists()


def test_fit_in_threads_works_on_a_store_that_serves(tmp_path: Path) -> None:
    with running("store", "--port", "0", "--log", "sqlite:///./served.db", cwd=tmp_path) as store:
        address = re.findall(r"http://\S+", store.wait_for(store.err, "Serving"))[0]
        with program(FIT, tmp_path, f"strategy='shm', store={address!r}") as fit:
            check(fit.result())


def test_fit_in_threads_works_on_kafka(tmp_path: Path, kafka_url: str) -> None:
    assert document("kafka", "init", "--log", kafka_url) is not None
    with program(FIT, tmp_path, f"strategy='shm', store={kafka_url!r}") as fit:
        check(fit.result())


def test_a_log_that_another_process_holds_gets_a_neighbour_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".agl").mkdir()
    with running("store", "--port", "0", cwd=tmp_path) as store:
        store.wait_for(store.err, "Serving")
        with program(FIT, tmp_path, "strategy='shm'") as fit:
            check(fit.result())
            said = [line for line in fit.lines if ".agl/log-2.db" in line]
            assert len(said) == 1 and f"process {store.process.pid}" in said[0]
    with sqlite3.connect(tmp_path / ".agl" / "log-2.db") as file:
        assert file.execute("select count(*) from sqlite_master").fetchone()[0] > 0


def test_an_agent_that_no_new_process_finds_is_forked_and_says_so(tmp_path: Path) -> None:
    text = (
        SEARCH
        + """
def main():
    def local(task, prompt_template):
        return agent(task, prompt_template)
    agl.setup_logging()
    show(agl.Trainer(algorithm=search, n_runners=2).fit(local, ["a", "b", "c"]))

if __name__ == "__main__":
    main()
"""
    )
    with program(text, tmp_path) as fit:
        check(fit.result())
        assert len([line for line in fit.lines if "Runners are forked" in line]) == 1


def test_a_program_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    text = (
        SEARCH
        + """
print("the beginning")
show(agl.Trainer(algorithm=search, n_runners=1).fit(agent, ["a", "b", "c"]))
print("the end")
"""
    )
    with program(text, tmp_path) as fit:
        check(fit.result())
        assert fit.text.count("the end") == 1 and "Traceback" not in fit.text
        assert len([line for line in fit.lines if "Runners are forked" in line]) == 1


def test_what_an_algorithm_raises_is_raised_by_fit_and_closes_the_run_as_failed(tmp_path: Path) -> None:
    text = (
        SEARCH
        + """
@agl.algo
async def broken(store):
    await store.enqueue_rollout("x")
    raise KeyError("broken in the middle")

if __name__ == "__main__":
    trainer = agl.Trainer(algorithm=broken, strategy=sys.argv[1])
    try:
        trainer.fit(agent)
    except KeyError as error:
        print("raised", error)
    print("outcome", asyncio.run(trainer.store.query_runs())[0]["outcome"])
"""
    )
    for strategy in ("cs", "shm"):
        with program(text, tmp_path, strategy) as fit:
            assert fit.ends() == 0, fit.text
            assert "raised 'broken in the middle'" in fit.text and "outcome failed" in fit.text


def test_runners_that_have_done_their_rollouts_end_a_fit_without_an_algorithm(tmp_path: Path) -> None:
    text = (
        SEARCH
        + """
if __name__ == "__main__":
    trainer = agl.Trainer(n_runners=1, max_rollouts=2, strategy=sys.argv[1], store=agl.InMemoryLightningStore())
    store = trainer.store
    asyncio.run(store.add_resources({"prompt": "Please {question}"}))
    for task in "ab":
        asyncio.run(store.enqueue_rollout(task))
    trainer.fit(agent)
    print("left", [rollout.status for rollout in asyncio.run(store.query_rollouts())])
"""
    )
    for strategy in ("cs", "shm"):
        with program(text, tmp_path, strategy) as fit:
            assert fit.ends() == 0, fit.text
            assert "left ['succeeded', 'succeeded']" in fit.text


def test_a_sync_algorithm_may_have_an_event_loop_of_its_own(tmp_path: Path) -> None:
    text = (
        SEARCH
        + """
@agl.algo
def plain(store, train_dataset):
    async def go():
        update = await store.add_resources({"prompt": "Please {question}"})
        rollouts = await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=task) for task in train_dataset])
        await store.wait_for_rollouts([one.rollout_id for one in rollouts])
        return update.resources_id
    return asyncio.run(go())

if __name__ == "__main__":
    config = agl.RolloutConfig(max_attempts=3, retry_condition=["failed"])
    trainer = agl.Trainer(algorithm=plain, n_runners=2, strategy="shm", rollout_config=config)
    show(trainer.fit(agent, ["a", "b"]))
    print("attempts", {one.config.max_attempts for one in asyncio.run(trainer.store.query_rollouts())})
"""
    )
    with program(text, tmp_path) as fit:
        result = fit.result()
        assert result["rewards"] == [1.0, 1.0] and result["best"] == "Please {question}"
        assert "attempts {3}" in fit.text


@pytest.mark.parametrize("strategy", ["cs", "shm"])
def test_the_model_calls_of_four_runners_are_recorded_each_with_its_attempt(tmp_path: Path, strategy: str) -> None:
    text = (
        SEARCH
        + """
from openai import OpenAI

@agl.rollout
def asker(task: str, prompt_template: agl.PromptTemplate, llm: agl.LLM) -> float:
    client = OpenAI(base_url=llm.endpoint, api_key="none")
    messages = [{"role": "user", "content": prompt_template.format(question=task)}]
    answer = client.chat.completions.create(model=llm.model, messages=messages)
    return 1.0 if "Rayleigh" in answer.choices[0].message.content else 0.0

@agl.algo
async def read(store, adapter, initial_resources, train_dataset):
    update = await store.add_resources(initial_resources)
    rollouts = [await store.enqueue_rollout(task, mode="train", resources_id=update.resources_id) for task in train_dataset]
    for rollout in await store.wait_for_rollouts([one.rollout_id for one in rollouts]):
        spans = await store.query_spans(rollout.rollout_id)
        prompts = [trip.prompt["raw_content"][0]["content"] for trip in adapter.adapt(list(spans))]
        [triplet] = adapter.adapt(list(spans))
        print("seen", rollout.input, prompts, triplet.reward, flush=True)

if __name__ == "__main__":
    resources = {"llm": agl.LLM(endpoint=sys.argv[2], model="stub"), "prompt": "Now {question}"}
    trainer = agl.Trainer(algorithm=read, n_runners=4, strategy=sys.argv[1], initial_resources=resources)
    show(trainer.fit(asker, [f"task-{number}" for number in range(12)]))
"""
    )
    with openai_stub() as stub, program(text, tmp_path, strategy, stub.base_url) as fit:
        assert fit.result()["rewards"] == [1.0] * 12
        seen = [line for line in fit.lines if line.startswith("seen")]
        assert seen == [f"seen task-{number} ['Now task-{number}'] 1.0" for number in range(12)], fit.text
