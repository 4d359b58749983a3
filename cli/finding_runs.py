"""Runs for the commands: found in a log, in all logs of this folder, or in a store over HTTP, with what they reached."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.errors import AgentLightningError, InvalidInput, NotFound
from ..core.log import Log
from ..core.state import Rollout
from ..core.vocabulary import FINISHED
from ..projections.blobs import Blobs
from ..projections.runs import Run, RunBook, find_run, runs_from
from .reading import logs_here, open_reading

if TYPE_CHECKING:
    from ..projections.span_book import SpanBook

NO_LIMIT_MB = 1e9
SIDE_BY_SIDE = 16


@dataclass
class Found:
    """A run, where it is, the statuses of its rollouts, and their final rewards: rollout -> reward or None for none."""

    run: Run
    url: str
    statuses: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    rewards: dict[str, float | None] = field(default_factory=lambda: dict[str, float | None]())

    @property
    def state(self) -> str:
        """`open`, or the word that it was closed with."""
        return "open" if self.run.closed_at is None else self.run.outcome or "closed"

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
            "log": self.url,
            "name": run.name,
            "algorithm": run.algorithm,
            "agent": run.agent,
            "seed": run.seed,
            "state": self.state,
            "opened_time": run.opened_time,
            "closed_time": run.closed_time,
            "opened_at": run.opened_at,
            "closed_at": run.closed_at,
            "rollouts": dict(sorted(Counter(self.statuses.values()).items())),
            "decisions": run.decided,
            "rewarded": len(self.rewards) - self.missing_rewards,
            "missing_rewards": self.missing_rewards,
            "mean_reward": self.mean_reward,
            "best_resources_id": run.best_resources_id,
            "best_resources_version": run.best_resources_version,
        }


def runs_at(url: str, token: str | None) -> list[Found]:
    """Every run of a log or a store, the oldest first. Blocks; raises what opening and reading raise."""
    if url.startswith(("http://", "https://")):
        return asyncio.run(_of_store(url, token))
    with open_reading(url) as log:
        return runs_in(log, url)


def runs_in(log: Log, url: str, only: str | None = None) -> list[Found]:
    """Every run of a log, or the one that `only` names. Raises `NotFound`.

    Blocks: the control log is looked through for runs, and folded from its newest snapshot on.
    """
    from ..projections.span_book import SpanBook
    from ..projections.standing import standing

    blobs = Blobs(log, NO_LIMIT_MB)
    book = RunBook(log, blobs.fetch)
    runs = book.advance()
    shown = list(runs.values()) if only is None else [find_run(runs, only)]
    owner = {one: run_id for one, run_id in book.early.items() if run_id in runs}
    owner.update((one, run.run_id) for run in runs.values() for one in run.rollout_ids)
    names = {run.run_id for run in shown}
    stands = standing(log, [one for one, run_id in owner.items() if run_id in names])
    spans = SpanBook(log, blobs)
    members: dict[str, dict[str, Rollout]] = {run_id: {} for run_id in names}
    for one, rollout in stands.items():
        members[owner[one]][one] = rollout
    return [_found(run, url, members[run.run_id], spans) for run in shown]


def _found(run: Run, url: str, rollouts: dict[str, Rollout], spans: SpanBook) -> Found:
    run.rollout_ids = list(rollouts)  # those that the log accepted
    rewards: dict[str, float | None] = {}
    for one, rollout in rollouts.items():
        if rollout.status in FINISHED:
            latest = rollout.attempts[-1].attempt_id if rollout.attempts else None
            rewards[one] = _reward([span for span in spans.read(one) if span.attempt_id == latest])
    return Found(run, url, {one: str(rollout.status) for one, rollout in rollouts.items()}, rewards)


def _reward(spans: Sequence[Any]) -> float | None:
    """Of the attempt that counts, which is the latest one."""
    from ..runners.readers import find_final_reward

    return find_final_reward(sorted(spans, key=lambda span: span.sequence_id))


async def _of_store(url: str, token: str | None) -> list[Found]:
    from ..projections.rest.client import LightningStoreClient

    client = LightningStoreClient(url, token=token)
    gate = asyncio.Semaphore(SIDE_BY_SIDE)

    async def reward(rollout_id: str) -> tuple[str, float | None]:
        async with gate:
            return rollout_id, _reward(list(await client.query_spans(rollout_id, "latest")))

    try:
        found: list[Found] = []
        for brief in runs_from(await client.query_runs(brief=True)):
            [run] = runs_from(await client.query_runs(brief.run_id))
            statuses: dict[str, str] = {}
            if run.rollout_ids:
                page = await client.query_rollouts(rollout_id_in=run.rollout_ids)
                statuses = {one.rollout_id: str(one.status) for one in page}
            over = [one for one, word in statuses.items() if word in FINISHED]
            rewards = dict(await asyncio.gather(*(reward(one) for one in over)))
            found.append(Found(run, url, statuses, rewards))
        return found
    finally:
        await client.close()


@contextmanager
def log_of_run(name: str, url: str | None) -> Generator[tuple[Log, str], None, None]:
    """The open log that has the run, and its address. Raises `NotFound`, `InvalidInput` where several logs have one."""
    having: list[str] = []
    logs = logs_here(url)
    if len(logs) == 1:  # who looks for the run in it says so where it is not there
        with open_reading(logs[0]) as log:
            yield log, logs[0]
        return
    missing: AgentLightningError | None = None
    for one in logs:
        with open_reading(one) as log:
            try:
                find_run(RunBook(log, Blobs(log, NO_LIMIT_MB).fetch).advance(), name)
            except NotFound as error:
                missing = error
            else:
                having.append(one)
    if not having:
        raise missing or NotFound(f"there is no run {name}")
    if len(having) > 1:
        raise InvalidInput(f"{name} is a run of {', '.join(having)}; name one with --log")
    with open_reading(having[0]) as log:
        yield log, having[0]
