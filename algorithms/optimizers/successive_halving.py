"""SuccessiveHalving: compares given candidates, and spends most of the rollouts on those that do well."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ...core.errors import AgentLightningError, InvalidInput
from ...core.model.resources import NamedResources, ResourcesUpdate, validate_resources
from ...core.model.rollout import Dataset, EnqueueRolloutRequest, RolloutMode
from ...core.retry import patiently
from ...core.spans.rewards import final_reward
from ..algorithm import Algorithm
from ..datasets import Rows
from .scores import Score, score_of

__all__ = ["CandidateResult", "NoRewards", "SuccessiveHalving"]

_log = logging.getLogger(__name__)
AT_ONCE = 16
"""How many rollouts are read from the store at the same time."""


class NoRewards(AgentLightningError):
    """No rollout of a round has a reward: nothing can be compared. The message has the first error."""

    code = "no_rewards"


@dataclass
class CandidateResult:
    """What is known of one candidate.

    `rewards`: by the number of the task in the training data. `missing`: rollouts that ended without a reward.
    `dropped_in`: the round, from 1, after which it was left out; None for those that stayed.
    """

    name: str
    resources: NamedResources
    update: ResourcesUpdate | None = None
    rewards: dict[int, float] = field(default_factory=dict[int, float])
    missing: int = 0
    dropped_in: int | None = None


class SuccessiveHalving(Algorithm):
    """Finds the best of some candidates: all of them get a few tasks, the better ones more, the best one all.

    After each round the candidates are ranked by the lower end of the interval of their mean reward (`score_of`), so
    that few rewards do not win over many; one without any reward comes last; equal ones keep the order in which they were
    given. Every candidate of a round gets the same tasks. `set_best_resources` names the leader after each round. With
    validation data the first and the best candidate are run on it at the end: no choice was made by those rewards.

    Source: Karnin, Koren and Somekh, ICML 2013; Jamieson and Talwalkar, AISTATS 2016.

    Args:
        candidates: texts, prompt templates or mappings of resources, in a list or by name. The first one is the seed, what
            is used today.
        resource: the name under which the agent gets a text or a template.
        rounds: (tasks, kept) of each round: how many tasks a candidate has been run on after it, and how many candidates
            stay. None: each round keeps one of `eta` and has `eta` times the tasks of the one before, the last all tasks.
        eta: 2 halves.

    After a run `results` has a `CandidateResult` of each candidate, the best first, and `held_out` the scores of the first and
    the best candidate on the validation data, by name. The order of the tasks is drawn from the run's seed.
    """

    def __init__(
        self,
        candidates: Sequence[Any] | Mapping[str, Any],
        *,
        resource: str = "prompt_template",
        rounds: Sequence[tuple[int, int]] | None = None,
        eta: int = 2,
    ) -> None:
        named = (
            candidates
            if isinstance(candidates, Mapping)
            else {f"candidate {n}": one for n, one in enumerate(candidates, 1)}
        )
        if not named:
            raise InvalidInput("SuccessiveHalving needs at least one candidate.")
        if eta < 2:
            raise InvalidInput(f"eta is a whole number from 2 on, not {eta}.")
        for tasks, kept in rounds or ():
            if tasks < 1 or kept < 1:
                raise InvalidInput(f"rounds has ({tasks}, {kept}); both numbers start at 1.")
        self.rounds = None if rounds is None else tuple(rounds)
        self.eta = eta
        self.given: dict[str, NamedResources] = {
            str(name): validate_resources(cast("Mapping[str, Any]", one) if isinstance(one, Mapping) else {resource: one})
            for name, one in named.items()
        }
        self.results: list[CandidateResult] = []
        self.held_out: dict[str, Score] = {}
        self._first_error = ""

    async def run(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> None:
        """Search on the training data, then run the first and the best candidate on the validation data, where given.

        Raises InvalidInput without training data, NoRewards where no rollout of a round has a reward.
        """
        tasks = _read(train_dataset)
        if not tasks:
            raise InvalidInput("SuccessiveHalving needs a train_dataset with at least one task.")
        order = list(range(len(tasks)))
        random.Random(self.get_seed() or 0).shuffle(order)
        common = self.get_initial_resources() or {}
        self.results = [CandidateResult(name, {**common, **own}) for name, own in self.given.items()]
        seed, self.held_out, self._first_error = self.results[0], {}, ""
        staying, done = list(self.results), 0
        rounds = self._rounds(len(tasks))
        for number, (count, kept) in enumerate(rounds, start=1):
            what = f"{len(staying)} candidates, {count} tasks each"
            _log.info("Round %d of %d: %s.", number, len(rounds), what)
            await self._measure(staying, [(at, tasks[at]) for at in order[done:count]])
            done = max(done, count)
            self._rank()
            staying = [one for one in self.results if one.dropped_in is None]
            for one in staying[kept:]:
                one.dropped_in = number
            del staying[kept:]
            self._rank()
            self.set_best_resources(staying[0].update)
        best = self.results[0]
        _log.info("Best: %s, %s.", best.name, self.score(best))
        if val_dataset is not None:
            await self._check(list({one.name: one for one in (seed, best)}.values()), _read(val_dataset))

    def score(self, result: CandidateResult) -> Score:
        """The score of a candidate; the range is that of all rewards so far, and at least 0 to 1."""
        seen = [reward for one in self.results for reward in one.rewards.values()]
        return score_of(list(result.rewards.values()), min([0.0, *seen]), max([1.0, *seen]))

    def _rounds(self, tasks: int) -> Sequence[tuple[int, int]]:
        if self.rounds is not None:
            return [(min(count, tasks), kept) for count, kept in self.rounds]
        left, rounds = len(self.given), list[int]()
        while True:
            left = math.ceil(left / self.eta)
            rounds.append(left)
            if left == 1:
                break
        return [
            (max(1, tasks // self.eta**after), kept)
            for after, kept in zip(reversed(range(len(rounds))), rounds, strict=True)
        ]

    def _rank(self) -> None:
        """Those that stay first, then those that left last; among them by the lower end of the interval."""

        def place(one: CandidateResult) -> tuple[float, bool, float]:
            return -(one.dropped_in or math.inf), not one.rewards, -self.score(one).low

        self.results.sort(key=place)

    async def _measure(self, candidates: Sequence[CandidateResult], tasks: Sequence[tuple[int, Any]]) -> None:
        """Run each candidate on the tasks, all at once; their rewards are added to the results."""

        async def one(candidate: CandidateResult) -> bool:
            found = await self._rewards(candidate, [task for _, task in tasks], "train")
            known = {at: reward for (at, _), reward in zip(tasks, found, strict=True) if reward is not None}
            candidate.rewards.update(known)
            candidate.missing += len(found) - len(known)
            without = f", {candidate.missing} without a reward" if candidate.missing else ""
            _log.info("  %s: %s%s", candidate.name, self.score(candidate), without)
            return bool(known)

        if tasks and not any(await asyncio.gather(*(one(candidate) for candidate in candidates))):
            raise NoRewards(
                f"none of {len(tasks) * len(candidates)} rollouts has a reward; the first: {self._first_error}"
            )

    async def _check(self, candidates: Sequence[CandidateResult], tasks: Sequence[Any]) -> None:
        _log.info("Held-out check: %d tasks, the first candidate and the best.", len(tasks))
        for candidate in candidates:
            found = await self._rewards(candidate, tasks, "val")
            self.held_out[candidate.name] = score_of([reward for reward in found if reward is not None])
            _log.info("  %s: %s", candidate.name, self.held_out[candidate.name])

    async def _rewards(self, candidate: CandidateResult, tasks: Sequence[Any], mode: RolloutMode) -> list[float | None]:
        """The final reward of each task; None where the rollout failed or emitted none. Neighbours share the prompt."""
        store = self.get_store()
        if candidate.update is None:
            candidate.update = await store.add_resources(candidate.resources)
        bound = candidate.update.resources_id
        rollouts = await store.enqueue_many_rollouts(
            [EnqueueRolloutRequest(input=task, mode=mode, resources_id=bound) for task in tasks]
        )
        slots = asyncio.Semaphore(AT_ONCE)

        async def reward_of(rollout_id: str) -> float | None:
            async with slots:
                attempt = await patiently(lambda: store.get_latest_attempt(rollout_id), f"Rollout {rollout_id}")
                spans = await patiently(lambda: store.query_spans(rollout_id), f"Rollout {rollout_id}")
                reward = final_reward(spans, attempt.attempt_id if attempt is not None else None)
            if reward is None and not self._first_error:
                error = (attempt.metadata or {}).get("error") if attempt is not None else None
                self._first_error = f"{rollout_id}: {error or 'its attempt emitted no reward'}"
            return reward

        ids = [rollout.rollout_id for rollout in rollouts]
        await store.wait_for_rollouts(ids)
        return list(await asyncio.gather(*(reward_of(one) for one in ids)))


def _read(dataset: Any) -> list[Any]:
    """All samples. InvalidInput for one that cannot be read: candidates are compared on the same tasks."""
    samples: list[Any] = []
    for row in Rows(dataset) if dataset is not None else ():
        if row.error is not None:
            raise InvalidInput(f"row {row.number} of the dataset cannot be read: {row.error}") from row.error
        samples.append(row.value)
    return samples
