"""FitResult: what came of a fit, and how it is collected from the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...core.model.resources import NamedResources, ResourcesUpdate, validate_resources
from ...core.model.store_interface import LightningStore
from ...core.retry import patiently
from ...core.spans.rewards import find_final_reward
from ..algorithm import Best

__all__ = ["FitResult", "Outcome", "collect"]

Outcome = Literal["succeeded", "failed", "interrupted"]
_log = logging.getLogger(__name__)
AT_A_TIME = 16
"""So many rollouts are read at a time."""


@dataclass(frozen=True)
class FitResult:
    """What ``Trainer.fit`` returns.

    Attributes:
        run_id: the run in the log: ``agl show RUN`` and ``agl replay RUN`` take it. Empty for a process that only had
            runners.
        outcome: ``interrupted`` after Ctrl+C.
        best_resources: what the algorithm named the best; None where it named nothing.
        best_resources_id: their id in the store, where they were published.
        rewards: rollout id -> final reward of the attempt that counts, in the order in which the algorithm created
            them; None where there is none, which is not 0.
        statuses: rollout id -> its status when the fit ended.
    """

    run_id: str
    outcome: Outcome = "succeeded"
    best_resources: NamedResources | None = None
    best_resources_id: str | None = None
    best_resources_version: int | None = None
    rewards: dict[str, float | None] = field(default_factory=lambda: dict[str, "float | None"]())
    statuses: dict[str, str] = field(default_factory=lambda: dict[str, str]())

    @property
    def mean_reward(self) -> float | None:
        """The mean over rollouts that have a reward; None where none has."""
        known = [reward for reward in self.rewards.values() if reward is not None]
        return sum(known) / len(known) if known else None

    @property
    def missing_rewards(self) -> int:
        """The number of rollouts that :attr:`mean_reward` says nothing about, because they have no reward."""
        return sum(reward is None for reward in self.rewards.values())

    @property
    def summary(self) -> dict[str, Any]:
        """The figures that the log keeps of the run."""
        counts: dict[str, int] = {}
        for status in self.statuses.values():
            counts[status] = counts.get(status, 0) + 1
        return {
            "rollouts": len(self.statuses),
            "statuses": counts,
            "rewarded": len(self.rewards) - self.missing_rewards,
            "missing_rewards": self.missing_rewards,
            "mean_reward": self.mean_reward,
        }


async def collect(
    store: LightningStore, run_id: str, outcome: Outcome, rollout_ids: Sequence[str], best: Best | None
) -> FitResult:
    """Read statuses and rewards, and what ``best`` names."""
    turns = asyncio.Semaphore(AT_A_TIME)

    async def read(rollout_id: str) -> tuple[str, float | None]:
        async with turns:
            rollout = await patiently(lambda: store.get_rollout_by_id(rollout_id), f"Rollout {rollout_id}")
            if rollout is None:
                return "unknown", None
            spans = await patiently(lambda: store.query_spans(rollout_id, "latest"), f"Rollout {rollout_id}")
            return rollout.status, find_final_reward(list(spans))

    found = dict(zip(rollout_ids, await asyncio.gather(*(read(one) for one in rollout_ids))))
    resources, resources_id, version = await _named(store, best)
    result = FitResult(
        run_id=run_id,
        outcome=outcome,
        best_resources=resources,
        best_resources_id=resources_id,
        best_resources_version=version,
        rewards={one: reward for one, (_, reward) in found.items()},
        statuses={one: status for one, (status, _) in found.items()},
    )
    mean, missing = result.mean_reward, result.missing_rewards
    if mean is not None and missing:
        _log.warning("The mean reward %.4g leaves out %d of %d rollouts, which have none.", mean, missing, len(found))
    return result


async def _named(store: LightningStore, best: Best | None) -> tuple[NamedResources | None, str | None, int | None]:
    """Resources, their id and their version; each None where it is not known."""
    if best is None:
        return None, None, None
    if isinstance(best, str):
        update = await patiently(lambda: store.get_resources_by_id(best), "The best resources")
        if update is None:
            _log.info("The algorithm named %.100r, of which the store has no resources.", best)
            return None, None, None
        return update.resources, best, update.version
    if isinstance(best, ResourcesUpdate):
        return best.resources, best.resources_id, best.version
    return validate_resources(best), None, None
