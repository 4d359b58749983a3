"""A fit and its run: which rollouts its runners execute, whose runners get them, and how the run ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithms.recorder import RunEnd, RunStart, recorder_for
from agentlightning.projections.run_methods import cancel_run


def test_a_fit_leaves_rollouts_of_before_alone_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def agent(task: Any) -> float:
        seen.append(task)
        return 1.0

    @agl.algo
    async def search(store: agl.LightningStore, train_dataset: list[str]) -> None:
        made = [await store.enqueue_rollout(task) for task in train_dataset]
        await store.update_rollout(made[0].rollout_id, metadata={"mine": 1})
        assert len(await store.wait_for_rollouts([one.rollout_id for one in made], timeout=20)) == len(made)

    async def before() -> tuple[list[str], str]:
        recorder = recorder_for(store)
        old = await recorder.opened(RunStart(name="killed"))
        await store.add_resources({"p": "x"})
        bound = recorder.bind(old, own_runners=True)
        left = [await bound.enqueue_rollout("of the killed run"), await store.enqueue_rollout("of nobody")]
        await recorder.closed(old, RunEnd("lost"))
        return [one.rollout_id for one in left], old

    store: Any = agl.open_store(f"sqlite:///{tmp_path}/log.db")
    try:
        left, old = asyncio.run(before())
        trainer = agl.Trainer(algorithm=search, strategy="shm", store=store, max_rollouts=3)
        result = trainer.fit(agent, ["a", "b", "c"])
        assert sorted(seen) == ["a", "b", "c"] and list(result.rewards.values()) == [1.0] * 3
        [line] = [one.message for one in caplog.records if "before" in one.message]
        assert f"1 of {old}" in line and "1 without a run" in line and f"agl cancel {old}" in line
        statuses = asyncio.run(store.query_rollouts(rollout_id_in=left))
        assert [one.status for one in statuses] == ["queuing", "queuing"]
        assert asyncio.run(cancel_run(store, "killed")) == {"run_id": old, "rollout_ids": left[:1]}
        statuses = asyncio.run(store.query_rollouts(rollout_id_in=left))
        assert [one.status for one in statuses] == ["cancelled", "queuing"]
    finally:
        store.close()


async def test_a_foreign_runner_gets_nothing_of_a_fit_and_both_sides_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentlightning.runners.runner.IDLE_SECONDS", 0.1)
    store: Any = agl.open_store("memory://")
    recorder = recorder_for(store)
    run_id = await recorder.opened(RunStart(own_runners=True))
    mine = await recorder.bind(run_id, own_runners=True).enqueue_rollout("of the fit")
    stop = agl.ThreadingEvent()

    def agent(task: Any) -> float:
        raise AssertionError("a foreign runner executed it")

    async def foreign() -> None:
        runner: Any = agl.LitAgentRunner(agl.DummyTracer())
        with runner.run_context(agent=agent, store=store, worker_id=7):
            await runner.iter(event=stop)

    working = asyncio.ensure_future(foreign())
    for _ in range(200):
        if len([one for one in caplog.records if run_id in one.message]) >= 2:
            break
        await asyncio.sleep(0.05)
    stop.set()
    await working
    lines = [one.message for one in caplog.records if run_id in one.message]
    assert len(lines) == 2
    assert any("Worker-7 asked for work" in line and "its own runners" in line for line in lines)
    assert any("[Worker 7] No work" in line for line in lines)
    got = await store.get_rollout_by_id(mine.rollout_id)
    assert got.status == "queuing"
    store.close()
