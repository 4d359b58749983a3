"""What earlier demos left in the log, read from the rollouts themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from ...core.model.rollout import Rollout
from ...core.model.store_interface import LightningStore
from ...core.spans.readers import find_final_reward
from .board import Key

_MARK = "demo"
"""The key of a rollout's metadata that tells the demo's own rollouts from others."""

_FINISHED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class RunName:
    """Which run, with which plan and model: only a run of the same plan and model is continued."""

    run_id: str
    plan: str
    model: str


@dataclass
class EarlierRun:
    """One run as the log has it; `known` are its rewards, `open_ids` the rollouts that nobody finished."""

    name: RunName
    known: dict[Key, float] = field(default_factory=dict[Key, float])
    open_ids: list[str] = field(default_factory=list[str])
    tested: dict[str, set[str]] = field(default_factory=dict[str, "set[str]"])

    def complete(self, test_reviews: int) -> bool:
        """Whether the held-out check was reached and is over for every candidate in it."""
        return not self.open_ids and bool(self.tested) and all(len(t) >= test_reviews for t in self.tested.values())


def label(run: RunName, key: Key) -> dict[str, Any]:
    """The metadata of a rollout of this run; :func:`earlier_runs` reads it back."""
    question = {"stage": key.stage, "candidate": key.candidate, "review": key.review_id}
    return {_MARK: run.run_id, "plan": run.plan, "model": run.model, **question}


async def earlier_runs(store: LightningStore) -> list[EarlierRun]:
    """All runs in the log, oldest first. Reads every rollout and, for those that succeeded, their spans."""
    runs: dict[str, EarlierRun] = {}
    for rollout in cast("Iterable[Rollout]", await store.query_rollouts()):
        mark = rollout.metadata or {}
        if _MARK not in mark:
            continue
        name = RunName(mark[_MARK], mark["plan"], mark["model"])
        run = runs.setdefault(name.run_id, EarlierRun(name))
        key = Key(mark["stage"], mark["candidate"], mark["review"])
        if rollout.status not in _FINISHED:
            run.open_ids.append(rollout.rollout_id)
            continue
        if rollout.status == "cancelled":
            continue
        if key.stage == "test":
            run.tested.setdefault(key.candidate, set()).add(key.review_id)
        reward = None
        if rollout.status == "succeeded":
            reward = find_final_reward(await store.query_spans(rollout.rollout_id, "latest"))
        if reward is not None:
            run.known[key] = reward
    return list(runs.values())


async def close_open(store: LightningStore, run: EarlierRun) -> None:
    """Cancels what an interrupted run left open: its model server is gone; a run that goes on asks again."""
    for rollout_id in run.open_ids:
        await store.update_rollout(rollout_id, status="cancelled")
