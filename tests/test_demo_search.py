"""The demo's algorithm, without a model: what it asks, chooses, keeps from an interrupted run, and shows."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rich.console import Console

import agentlightning as agl
from agentlightning.cli.demo.agent import score
from agentlightning.cli.demo.board import Board, Key
from agentlightning.cli.demo.candidates import candidates
from agentlightning.cli.demo.history import RunName, close_open, earlier_runs
from agentlightning.cli.demo.reviews import load_reviews, of_split
from agentlightning.cli.demo.screen import LiveScreen, Screen, report
from agentlightning.cli.demo.search import FULL, SHORT, NoAnswer, Plan, Search
from agentlightning.cli.demo.wilson import estimate
from agentlightning.core.model.span import Span
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.projections.store.store import EventLogStore
from agentlightning.runners.emit import emit_reward

Judge = Callable[[str, dict[str, str]], "float | None"]
"""(template, task) -> reward; None: the attempt fails."""


@asynccontextmanager
async def scripted_runners(store: EventLogStore, judge: Judge, asked: list[str]) -> AsyncIterator[None]:
    """Two runners that answer by `judge`; `asked` collects the ids of the reviews that they were asked about."""

    async def work(worker_id: str) -> None:
        while True:
            rollout = await store.dequeue_rollout(worker_id=worker_id)
            if rollout is None:
                await asyncio.sleep(0.002)
                continue
            update = await store.get_resources_by_id(rollout.resources_id or "")
            assert update is not None
            asked.append(rollout.input["id"])
            reward = judge(update.resources["prompt_template"].template, rollout.input)  # type: ignore[union-attr]
            ids = rollout.rollout_id, rollout.attempt.attempt_id
            if reward is not None:
                core = emit_reward(reward, propagate=False)
                number = await store.get_next_span_sequence_id(*ids)
                span = Span.from_core_fields(core, rollout_id=ids[0], attempt_id=ids[1], sequence_id=number)
                await store.add_span(span)
            await store.update_attempt(*ids, status="failed" if reward is None else "succeeded")

    workers = [asyncio.create_task(work(f"Worker-{number}")) for number in range(2)]
    try:
        yield
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def search_on(
    store: EventLogStore, run: str = "run-1", known: Any = None, plan: Plan = FULL, changed: Any = None
) -> Search:
    return Search(
        store,
        run=RunName(run, plan.name, "none"),
        plan=plan,
        llm=agl.LLM(endpoint="http://127.0.0.1:9/v1", model="none"),
        candidates=candidates()[: plan.prompts],
        known=known or {},
        changed=changed or (lambda *_: None),
    )


def good_with_examples(template: str, task: dict[str, str]) -> float:
    """Right where the prompt holds exactly two examples; elsewhere on every other review."""
    return 1.0 if template.count("Sentiment:") == 3 else float(int(task["id"][1:]) % 2)


async def test_demo_reviews_are_balanced_and_no_pair_spans_two_splits() -> None:
    reviews = load_reviews()
    assert len(reviews) == len({review.text for review in reviews}) == 200
    assert [review.review_id for review in reviews] == [f"r{number:03d}" for number in range(1, 201)]
    for split in ("train", "validation", "test"):
        labels = [review.label for review in of_split(split)]
        for end in range(2, len(labels) + 1, 2):
            assert Counter(labels[:end]) == {"positive": end // 2, "negative": end // 2}


async def test_demo_prompts_hold_train_reviews_only() -> None:
    asked = [review.text for split in ("validation", "test") for review in of_split(split)]  # type: ignore[arg-type]
    for candidate in candidates():
        assert candidate.template.count("{review}") == 1
        assert not any(text in candidate.template for text in asked)
        assert candidate.template.format(review="x{y}").count("x{y}") == 1


@pytest.mark.parametrize(
    ("answer", "reward"),
    [(" positive", 1.0), ("Positive\n", 1.0), ("positive review", 1.0), ("positive.", 0.0), ("negative", 0.0), ("", 0.0),
     ("It is positive", 0.0), ("posit", 0.0)],
)  # fmt: skip
async def test_demo_score_mends_nothing(answer: str, reward: float) -> None:
    assert score(answer, "positive") == reward


async def test_demo_interval_is_wilsons() -> None:
    known = estimate([1.0] * 8 + [0.0] * 2)
    assert (round(known.low, 4), round(known.high, 4)) == (0.4902, 0.9433)
    assert estimate([]).count == 0
    assert estimate([1.0]).high == 1.0


async def test_demo_search_finds_the_best_prompt_and_checks_it_on_unseen_reviews() -> None:
    asked: list[str] = []
    with InMemoryLightningStore() as store:
        search = search_on(store)
        async with scripted_runners(store, good_with_examples, asked):
            outcome = await search.run()
    assert outcome.best.name == "2 examples"
    assert outcome.seed.name == candidates()[0].name
    # 9 prompts on 12 reviews, 4 on 12 more, 2 on 24 more, both ends on 80 of the test split.
    assert len(asked) == 9 * 12 + 4 * 12 + 2 * 24 + 2 * 80
    tested = {name: sum(rewards.values()) / len(rewards) for name, rewards in search.board.test.items()}
    assert tested == {"2 examples": 1.0, candidates()[0].name: 0.5}
    assert len(search.rewards) == len(asked)


async def test_demo_reward_that_never_came_is_missing_and_not_zero() -> None:
    asked: list[str] = []
    lost = of_split("validation")[0].review_id

    def judge(template: str, task: dict[str, str]) -> float | None:
        return None if task["id"] == lost else 1.0

    with InMemoryLightningStore() as store:
        search = search_on(store, plan=SHORT)
        async with scripted_runners(store, judge, asked):
            await search.run()
    row = search.board.ranking()[0]
    assert (row.missing, row.estimate.count, row.estimate.mean) == (1, 3, 1.0)
    assert asked.count(lost) == 3 * 3  # three prompts, three attempts each


async def test_demo_continues_an_interrupted_run_and_asks_nothing_twice() -> None:
    asked: list[str] = []
    with InMemoryLightningStore() as store:
        enough = asyncio.Event()

        def changed(board: Board, key: Key, reward: float | None, recalled: bool) -> None:
            if board.answered == 150:
                enough.set()

        async with scripted_runners(store, good_with_examples, asked):
            running = asyncio.create_task(search_on(store, changed=changed).run())
            await enough.wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        (run,) = await earlier_runs(store)
        assert not run.complete(FULL.test_reviews)
        assert len(run.known) >= 150
        assert run.open_ids
        await close_open(store, run)
        (run,) = await earlier_runs(store)
        assert not run.open_ids
        before = len(asked)
        second = search_on(store, known=run.known)
        async with scripted_runners(store, good_with_examples, asked):
            outcome = await second.run()
        (run,) = await earlier_runs(store)
    assert outcome.best.name == "2 examples"
    assert second.board.recalled >= 150
    assert second.board.answered == 9 * 12 + 4 * 12 + 2 * 24 + 2 * 80
    assert len(asked) - before == second.board.answered - second.board.recalled
    assert run.complete(FULL.test_reviews)


async def test_demo_screens_show_progress_table_and_result() -> None:
    for kind, terminal in ((Screen, False), (LiveScreen, True)):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=120)
        with InMemoryLightningStore() as store, kind(console) as screen:
            search = search_on(store, plan=SHORT, changed=screen.changed)
            async with scripted_runners(store, good_with_examples, []):
                outcome = await search.run()
        report(screen, search.board, outcome.seed, outcome.best)
        text = out.getvalue()
        assert "first reward after" in text
        assert terminal or "round 1 of 2" in text
        assert "held-out accuracy  before" in text
        assert "95 % interval" in text
        assert all(row.candidate.name in text for row in search.board.rows)
        assert screen.first_reward_seconds is not None


async def test_demo_says_when_another_prompt_was_as_good() -> None:
    out = io.StringIO()
    with InMemoryLightningStore() as store, Screen(Console(file=out, width=120)) as screen:
        search = search_on(store, plan=SHORT)
        async with scripted_runners(store, lambda template, task: 1.0, []):
            outcome = await search.run()
    report(screen, search.board, outcome.seed, outcome.best)
    assert f"as good: {candidates()[1].name}; the first in the list was taken" in out.getvalue()


async def test_a_model_that_answers_nothing_ends_the_demo_after_the_first_round_with_the_first_error() -> None:
    asked: list[str] = []
    store = InMemoryLightningStore()
    async with scripted_runners(store, lambda *_: None, asked):
        with pytest.raises(NoAnswer, match="no question was answered; the first error: ro-"):
            await search_on(store, plan=SHORT).run()
    assert len(set(asked)) == SHORT.rounds[0][0]
