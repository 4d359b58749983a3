"""The demo's algorithm: successive halving over the candidates, then the held-out check.

It knows a store and nothing else: no model, no runner, no file. Every question is a rollout, every answer a reward
that a runner recorded, and a question that the log already answers is not put again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...core.errors import AgentLightningError
from ...core.model.resources import LLM, PromptTemplate
from ...core.model.rollout import EnqueueRolloutRequest, Rollout, RolloutConfig
from ...core.model.store_interface import LightningStore
from ...core.spans.readers import find_final_reward
from .board import Board, Key, Row, Stage
from .candidates import Candidate
from .history import RunName, label
from .reviews import Review, of_split

CONFIG = RolloutConfig(max_attempts=3, retry_condition=["failed", "timeout", "unresponsive"], timeout_seconds=120.0)
"""A question that fails is asked again; after three attempts its reward is missing."""


@dataclass(frozen=True)
class Plan:
    """How much is asked.

    `rounds`: how many validation reviews each prompt has answered after the round, and how many prompts stay then.
    `prompts`: only the first so many candidates.
    """

    name: str
    rounds: tuple[tuple[int, int], ...]
    test_reviews: int
    prompts: int | None = None


FULL = Plan("full", ((12, 4), (24, 2), (48, 1)), 80)
SHORT = Plan("short", ((2, 2), (4, 1)), 4, 3)
"""For tests: enough to pass through every step, too little to mean anything."""


@dataclass(frozen=True)
class Outcome:
    """The two ends of a run: what it started from and what it chose."""

    seed: Candidate
    best: Candidate


class NoAnswer(AgentLightningError):
    """No question of a round was answered: nothing can be compared, and nothing is proved."""

    code = "no_answer"


class Search:
    """One run of it.

    `known`: rewards that an interrupted run left in the log. `changed` is called after each result, with the board, the
    question, its reward (None: missing) and whether the result was known. `rewards`: what came in, by rollout id.
    """

    def __init__(
        self,
        store: LightningStore,
        *,
        run: RunName,
        plan: Plan,
        llm: LLM,
        candidates: Sequence[Candidate],
        known: Mapping[Key, float],
        changed: Callable[[Board, Key, float | None, bool], None],
    ) -> None:
        self.board = Board([Row(candidate) for candidate in candidates], rounds=len(plan.rounds))
        self._store = store
        self._run = run
        self._llm = llm
        self._plan = plan
        self._known = known
        self._changed = changed
        self._resources: dict[str, str] = {}
        self.rewards: dict[str, float] = {}
        self._first_error = ""

    async def run(self) -> Outcome:
        """Asks everything; returns once the held-out check is done. Raises `NoAnswer` where the first round has no reward."""
        staying = list(self.board.rows)
        for number, (reviews, keep) in enumerate(self._plan.rounds, start=1):
            self.board.round = number
            asked = [(row.candidate, of_split("validation")[row.planned : reviews]) for row in staying]
            for row in staying:
                row.planned = reviews
            await self._ask("validation", asked)
            if not self.board.answers:
                raise NoAnswer(f"no question was answered; the first error: {self._first_error}")
            ranked = sorted(staying, key=lambda row: -row.estimate.mean if row.rewards else 1.0)
            for row in ranked[keep:]:
                row.dropped_in = number
            staying = ranked[:keep]
        outcome = Outcome(self.board.rows[0].candidate, staying[0].candidate)
        await self._check(outcome)
        return outcome

    async def _check(self, outcome: Outcome) -> None:
        """Both ends answer the test reviews, which are in no prompt and by which nothing was chosen."""
        test = of_split("test")[: self._plan.test_reviews]
        both = {candidate.name: candidate for candidate in (outcome.seed, outcome.best)}
        self.board.test_planned = len(test)
        await self._ask("test", [(candidate, test) for candidate in both.values()])

    async def _ask(self, stage: Stage, asked: Sequence[tuple[Candidate, Sequence[Review]]]) -> None:
        """Puts what the log does not answer yet, candidate by candidate, and returns when all results are in.

        In this order neighbouring questions share the prompt up to the review, which a server then reads only once.
        """
        waiting: list[asyncio.Task[None]] = []
        try:
            for candidate, reviews in asked:
                keys = [Key(stage, candidate.name, review.review_id) for review in reviews]
                fresh = [(key, review) for key, review in zip(keys, reviews, strict=True) if key not in self._known]
                for key in keys:
                    if key in self._known:
                        self._note(key, self._known[key], recalled=True)
                for key, rollout in zip([key for key, _ in fresh], await self._enqueue(candidate, fresh), strict=True):
                    waiting.append(asyncio.create_task(self._collect(key, rollout.rollout_id)))
            await asyncio.gather(*waiting)
        finally:
            for task in waiting:
                task.cancel()

    async def _enqueue(self, candidate: Candidate, asked: Sequence[tuple[Key, Review]]) -> Sequence[Rollout]:
        if not asked:
            return []
        if candidate.name not in self._resources:
            template = PromptTemplate(template=candidate.template, engine="f-string")
            added = await self._store.add_resources({"prompt_template": template, "llm": self._llm})
            self._resources[candidate.name] = added.resources_id
        return await self._store.enqueue_many_rollouts(
            [
                EnqueueRolloutRequest(
                    input={"id": review.review_id, "text": review.text, "label": review.label},
                    mode="test" if key.stage == "test" else "val",
                    resources_id=self._resources[candidate.name],
                    config=CONFIG,
                    metadata=label(self._run, key),
                )
                for key, review in asked
            ]
        )

    async def _collect(self, key: Key, rollout_id: str) -> None:
        await self._store.wait_for_rollouts([rollout_id])
        reward = find_final_reward(await self._store.query_spans(rollout_id, "latest"))
        if reward is not None:
            self.rewards[rollout_id] = reward
        elif not self._first_error:
            attempt = await self._store.get_latest_attempt(rollout_id)
            self._first_error = str((attempt and attempt.metadata or {}).get("error") or f"{rollout_id} has no reward")
        self._note(key, reward, recalled=False)

    def _note(self, key: Key, reward: float | None, *, recalled: bool) -> None:
        self.board.note(key, reward, recalled=recalled)
        self._changed(self.board, key, reward, recalled)
