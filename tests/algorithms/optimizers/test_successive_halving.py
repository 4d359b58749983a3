"""SuccessiveHalving with scripted runners: what it asks, chooses and leaves out, and what becomes of missing rewards."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithms.optimizers.scores import score_of
from agentlightning.algorithms.optimizers.successive_halving import NoRewards
from agentlightning.core.model.span import Span
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.projections.store.store import EventLogStore

Judge = Callable[[str, Any], "float | None"]
"""(template, task) -> reward; None: the attempt fails."""
TASKS = [{"id": number} for number in range(24)]
ROUNDS = [(4, 2), (8, 1)]


@asynccontextmanager
async def scripted_runners(store: EventLogStore, judge: Judge, asked: list[tuple[str, Any]]) -> AsyncIterator[None]:
    """Two runners that answer by `judge`; `asked` collects (template, task) of every attempt."""

    async def work(worker_id: str) -> None:
        while True:
            rollout = await store.dequeue_rollout(worker_id=worker_id)
            if rollout is None:
                await asyncio.sleep(0.002)
                continue
            update = await store.get_resources_by_id(rollout.resources_id or "")
            assert update is not None
            template = update.resources["prompt_template"].template  # type: ignore[union-attr]
            asked.append((template, rollout.input["id"]))
            reward = judge(template, rollout.input)
            ids = rollout.rollout_id, rollout.attempt.attempt_id
            if reward is not None:
                core = agl.emit_reward(reward, propagate=False)
                number = await store.get_next_span_sequence_id(*ids)
                await store.add_span(
                    Span.from_core_fields(core, rollout_id=ids[0], attempt_id=ids[1], sequence_id=number)
                )
            await store.update_attempt(
                *ids,
                status="failed" if reward is None else "succeeded",
                metadata={"error": "no model"} if reward is None else {},
            )

    workers = [asyncio.create_task(work(f"Worker-{number}")) for number in range(2)]
    try:
        yield
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def ran(
    search: agl.SuccessiveHalving, judge: Judge, tasks: Any = TASKS, held_out: Any = None, seed: int | None = None
) -> list[tuple[str, Any]]:
    asked: list[tuple[str, Any]] = []
    with InMemoryLightningStore() as store:
        search.set_store(store)
        search.set_seed(seed)
        async with scripted_runners(store, judge, asked):
            await search.run(tasks, held_out)
    return asked


def names(search: agl.SuccessiveHalving) -> list[str]:
    return [one.name for one in search.results]


def by_letter(template: str, task: Any) -> float:
    """Good for "b", fair for "c", bad for the others."""
    return {"b": 1.0, "c": float(task["id"] % 2)}.get(template[0], 0.0)


async def test_the_better_half_stays_and_the_best_is_checked_on_tasks_that_chose_nothing() -> None:
    search = agl.SuccessiveHalving({"seed": "a {x}", "good": "b {x}", "fair": "c {x}", "bad": "d {x}"}, rounds=ROUNDS)
    held_out = [{"id": 100 + number} for number in range(5)]
    asked = await ran(search, by_letter, held_out=held_out)
    counts = Counter(template[0] for template, _ in asked)
    # 4 candidates on 4 tasks, 2 of them on 4 more, the seed and the best on the 5 others.
    assert counts == {"a": 4 + 5, "b": 8 + 5, "c": 8, "d": 4}
    assert names(search) == ["good", "fair", "seed", "bad"]
    assert [one.dropped_in for one in search.results] == [None, 2, 1, 1]
    assert {name: score.mean for name, score in search.held_out.items()} == {"seed": 0.0, "good": 1.0}
    best: Any = search.get_best_resources()
    assert best.resources["prompt_template"].template == "b {x}"
    # Every candidate of a round had the same tasks, and none of the held-out ones.
    of = {letter: {task for template, task in asked if template[0] == letter and task < 100} for letter in "abcd"}
    assert of["a"] == of["d"] < of["b"] == of["c"]


async def test_the_rounds_that_nobody_gave_halve_and_end_with_all_tasks() -> None:
    search = agl.SuccessiveHalving([f"{letter} {{x}}" for letter in "abcde"])
    asked = await ran(search, by_letter)
    per = Counter(template[0] for template, _ in asked)
    assert per["b"] == 24 and sorted(per.values()) == [6, 6, 12, 24, 24], "5, 3, 2 candidates on 6, 12, 24 tasks"
    assert names(search)[0] == "candidate 2"


async def test_the_seed_of_the_run_decides_the_order_of_the_tasks() -> None:
    async def first_tasks(seed: int) -> set[Any]:
        asked = await ran(agl.SuccessiveHalving(["a {x}", "b {x}"], rounds=[(6, 1)]), by_letter, seed=seed)
        return {task for _, task in asked}

    assert await first_tasks(1) == await first_tasks(1) != await first_tasks(2)


async def test_a_missing_reward_is_not_zero_and_one_good_answer_wins_over_nobody() -> None:
    search = agl.SuccessiveHalving({"silent": "a {x}", "lucky": "b {x}", "steady": "c {x}"}, rounds=[(12, 1)])
    answered: list[Any] = []

    def judge(template: str, task: Any) -> float | None:
        if template[0] == "a":
            return None
        if template[0] == "b":  # one reward of 1.0, the rest is missing
            answered.append(task["id"])
            return 1.0 if len(answered) == 1 else None
        return 0.0 if task["id"] % 6 == 0 else 1.0

    await ran(search, judge)
    by_name = {one.name: one for one in search.results}
    assert names(search) == ["steady", "lucky", "silent"], "without a reward last; one reward proves little"
    assert (by_name["lucky"].missing, list(by_name["lucky"].rewards.values())) == (11, [1.0])
    assert (by_name["silent"].missing, by_name["silent"].rewards) == (12, {})
    assert math.isnan(search.score(by_name["silent"]).mean)


async def test_equal_candidates_keep_their_order_and_rewards_may_be_any_numbers() -> None:
    search = agl.SuccessiveHalving({"first": "a {x}", "second": "a  {x}", "third": "b {x}"}, rounds=[(4, 2), (8, 1)])
    await ran(search, lambda template, task: -7.5 if template[0] == "b" else 20.0)
    assert names(search) == ["first", "second", "third"]
    assert [search.score(one).mean for one in search.results] == [20.0, 20.0, -7.5]
    assert all(-7.5 <= search.score(one).low <= search.score(one).high <= 20.0 for one in search.results)


async def test_one_candidate_and_more_rounds_than_candidates() -> None:
    search = agl.SuccessiveHalving(["b {x}"], rounds=[(4, 3), (8, 2), (99, 1)])
    asked = await ran(search, by_letter)
    assert len(asked) == len(TASKS) and names(search) == ["candidate 1"]


async def test_a_round_without_any_reward_ends_the_search_with_the_first_error() -> None:
    search = agl.SuccessiveHalving(["a {x}", "b {x}"], rounds=ROUNDS)
    with pytest.raises(NoRewards, match=r"none of 8 rollouts has a reward; the first: ro-\w+: no model"):
        await ran(search, lambda *_: None)


async def test_what_cannot_be_compared_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    for wrong in ({"candidates": []}, {"candidates": ["a"], "eta": 1}, {"candidates": ["a"], "rounds": [(0, 1)]}):
        with pytest.raises(agl.InvalidInput):
            agl.SuccessiveHalving(**wrong)  # type: ignore[arg-type]
    with pytest.raises(agl.InvalidInput, match="needs a train_dataset"):
        await agl.SuccessiveHalving(["a {x}"]).run([])
    with caplog.at_level(logging.INFO, "agentlightning.algorithms.optimizers"):
        await ran(agl.SuccessiveHalving({"seed": "b {x}"}, rounds=[(2, 1)]), by_letter)
    assert (
        "Round 1 of 1: 1 candidates, 2 tasks each." in caplog.text and "Best: seed, 1.00 (0.34 to 1.00)." in caplog.text
    )


def test_the_interval_is_wilsons() -> None:
    known = score_of([1.0] * 8 + [0.0] * 2)
    assert (round(known.low, 4), round(known.high, 4)) == (0.4902, 0.9433)
    moved = score_of([3.0] * 8 + [-1.0] * 2, -1.0, 3.0)
    assert (moved.low, moved.high) == pytest.approx((4 * known.low - 1, 4 * known.high - 1))
    assert (score_of([]).count, str(score_of([]))) == (0, "no rewards")
    assert score_of([1.0]).high == 1.0 and score_of([2.0, 2.0], 2.0, 2.0).low == 2.0


def test_a_fit_that_is_interrupted_names_the_leader_of_the_last_round(tmp_path: Path) -> None:
    rollouts = 0

    @agl.rollout
    def agent(task: Any, prompt_template: agl.PromptTemplate) -> float:
        nonlocal rollouts
        rollouts += 1
        if rollouts == 10:  # in the second round
            os.kill(os.getpid(), signal.SIGINT)
        return by_letter(prompt_template.template, task)

    search = agl.SuccessiveHalving({"seed": "a {x}", "good": "b {x}"}, rounds=[(4, 2), (24, 1)])
    trainer = agl.Trainer(
        algorithm=search, store=f"sqlite:///{tmp_path}/log.db", strategy="shm", tracer=agl.OtelTracer(), progress=False
    )
    result = trainer.fit(agent, TASKS)
    assert result.outcome == "interrupted" and result.best_resources is not None
    assert result.best_resources["prompt_template"].template == "b {x}"  # type: ignore[union-attr]
