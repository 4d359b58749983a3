"""The table of runs: each with the statuses and final rewards of its rollouts, read from the log alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ...core.fold.state import Rollout
from ...core.log.interface import Log
from ...core.log.open_log import shown
from ...core.model.status import FINISHED
from ...core.spans.rewards import final_reward
from ..spans.blobs import NO_LIMIT_MB, Blobs
from ..spans.span_log import SpanLog, key_range
from .rollout_history import rollouts_at_end
from .run_index import Run, RunBook, find_run


@dataclass
class RunSummary:
    """A run, where it is, the statuses of its rollouts, and their final rewards: rollout -> reward or None for none."""

    run: Run
    url: str
    statuses: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    rewards: dict[str, float | None] = field(default_factory=lambda: dict[str, float | None]())

    @property
    def state(self) -> str:
        """`open`, or the word that it was closed with; `lost` where its program is gone."""
        return self.run.outcome or ("open" if self.run.closed_at is None else "closed")

    @property
    def mean_reward(self) -> float | None:
        """Over the finished rollouts that have a reward; None where none has: a missing one is no 0."""
        known = [one for one in self.rewards.values() if one is not None]
        return sum(known) / len(known) if known else None

    @property
    def missing_rewards(self) -> int:
        """The number of finished rollouts that have no reward."""
        return sum(one is None for one in self.rewards.values())

    def summary(self) -> dict[str, Any]:
        """The row of `agl ps --json`."""
        run = self.run
        return {
            "run_id": run.run_id,
            "log": shown(self.url),
            **{name: getattr(run, name) for name in ("name", "algorithm", "agent", "seed")},
            "state": self.state,
            **{name: getattr(run, name) for name in ("opened_time", "closed_time", "opened_at", "closed_at")},
            "rollouts": dict(sorted(Counter(self.statuses.values()).items())),
            "decisions": run.decided,
            "rewarded": len(self.rewards) - self.missing_rewards,
            "missing_rewards": self.missing_rewards,
            "mean_reward": self.mean_reward,
            "best_resources_id": run.best_resources_id,
            "best_resources_version": run.best_resources_version,
        }


def runs_in(log: Log, only: str | None = None) -> list[RunSummary]:
    """Every run of a log, the oldest first, or the one that `only` names. Raises `NotFound`.

    Blocks: the control log is searched for runs, and folded from its newest snapshot on.
    """
    blobs = Blobs(log, NO_LIMIT_MB)
    book = RunBook(log, blobs.fetch)
    runs = book.advance()
    wanted = list(runs.values()) if only is None else [find_run(runs, only)]
    owner = {one: run_id for one, run_id in book.early.items() if run_id in runs}
    owner.update((one, run.run_id) for run in runs.values() for one in run.rollout_ids)
    members: dict[str, dict[str, Rollout]] = {run.run_id: {} for run in wanted}
    for one, rollout in rollouts_at_end(log, [one for one, run_id in owner.items() if run_id in members]).items():
        members[owner[one]][one] = rollout
    spans = SpanLog(log, blobs)
    return [_summary(run, log.url, members[run.run_id], spans) for run in wanted]


def _summary(run: Run, url: str, rollouts: dict[str, Rollout], spans: SpanLog) -> RunSummary:
    run.rollout_ids = list(rollouts)  # those that the log accepted
    rewards: dict[str, float | None] = {}
    for one, rollout in rollouts.items():
        if rollout.status in FINISHED:
            rewards[one] = rollout.reward
            if rollout.reward is None and rollout.attempts:  # older releases did not write it into the event
                latest = rollout.attempts[-1].attempt_id
                rewards[one] = final_reward(spans.read(one, within=key_range(rollout)), latest)
    return RunSummary(run, url, {one: str(rollout.status) for one, rollout in rollouts.items()}, rewards)
