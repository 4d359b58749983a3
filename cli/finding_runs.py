"""Runs, rollouts and resources for the commands: found by id, beginning or name in the logs of this folder or in a store."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import click

from ..core.errors import InvalidInput, NotFound
from ..core.fold.state import Rollout
from ..core.log.interface import Log
from ..core.log.open_log import shown
from ..core.model.status import FINISHED
from ..projections.history.rollout_history import find_rollout
from ..projections.history.run_index import LATEST, Run, RunBook, find_run, runs_from
from ..projections.spans.blobs import Blobs
from ..projections.spans.schema import key_range
from ..projections.spans.span_log import SpanBook
from .reading import logs_here, open_reading
from .terminal import printable

NO_LIMIT_MB = 1e9
SIDE_BY_SIDE = 16

Kind = Literal["run", "rollout", "resources"]


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


def runs_at(url: str, token: str | None) -> list[RunSummary]:
    """Every run of a log or a store, the oldest first. Blocks; raises what opening and reading raise."""
    if url.startswith(("http://", "https://")):
        return asyncio.run(_of_store(url, token))
    with open_reading(url) as log:
        return runs_in(log, url)


def runs_in(log: Log, url: str, only: str | None = None) -> list[RunSummary]:
    """Every run of a log, or the one that `only` names. Raises `NotFound`.

    Blocks: the control log is looked through for runs, and folded from its newest snapshot on.
    """
    from ..projections.history.rollout_lookup import standing

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
    return [_summary(run, url, members[run.run_id], spans) for run in shown]


def _summary(run: Run, url: str, rollouts: dict[str, Rollout], spans: SpanBook) -> RunSummary:
    from ..core.spans.readers import final_reward

    run.rollout_ids = list(rollouts)  # those that the log accepted
    rewards: dict[str, float | None] = {}
    for one, rollout in rollouts.items():
        if rollout.status in FINISHED:
            latest = rollout.attempts[-1].attempt_id if rollout.attempts else None
            rewards[one] = final_reward(spans.read(one, within=key_range(rollout)), latest)
    return RunSummary(run, url, {one: str(rollout.status) for one, rollout in rollouts.items()}, rewards)


async def _of_store(url: str, token: str | None) -> list[RunSummary]:
    from ..core.spans.readers import find_final_reward
    from ..rest.client.client import LightningStoreClient

    client = LightningStoreClient(url, token=token, patience_seconds=LOOKING_SECONDS)
    gate = asyncio.Semaphore(SIDE_BY_SIDE)

    async def reward(rollout_id: str) -> tuple[str, float | None]:
        async with gate:
            return rollout_id, find_final_reward(await client.query_spans(rollout_id, "latest"))

    try:
        found: list[RunSummary] = []
        for brief in runs_from(await client.query_runs(brief=True)):
            [run] = runs_from(await client.query_runs(brief.run_id))
            statuses: dict[str, str] = {}
            if run.rollout_ids:
                page = await client.query_rollouts(rollout_id_in=run.rollout_ids)
                statuses = {one.rollout_id: str(one.status) for one in page}
            over = [one for one, word in statuses.items() if word in FINISHED]
            rewards = dict(await asyncio.gather(*(reward(one) for one in over)))
            found.append(RunSummary(run, url, statuses, rewards))
        return found
    finally:
        await client.close()


@dataclass
class Located:
    """What a name stands for: the open log that has it, its address, what it is, and its whole id; `run` for a run."""

    log: Log
    url: str
    kind: Kind
    id: str
    book: RunBook
    run: Run | None = None


@contextmanager
def located(
    name: str, url: str | None, token: str | None, kinds: Sequence[Kind] = ("run", "rollout", "resources")
) -> Generator[Located, None, None]:
    """The one thing of these kinds that `name` stands for, in the log at `url` or in all logs of this folder.

    A run is found by its id, its name, `latest`, or the beginning of its id; of several with the same name the newest is
    taken, and a line on standard error says which. Raises `NotFound`, and `InvalidInput` where several logs have the id.
    """
    found: list[Located] = []
    missing: NotFound | None = None
    with ExitStack() as stack:
        namesakes = 0
        for one in logs_here(url):
            log = stack.enter_context(open_reading(one, token))
            book = RunBook(log, Blobs(log, NO_LIMIT_MB).fetch)
            namesakes += sum(run.name == name for run in book.advance().values())
            try:
                found.append(_matching(Located(log, one, "run", name, book), name, kinds))
            except NotFound as error:
                missing = missing or error
        if not found:
            raise missing or NotFound(f"there is nothing of the name {name}")
        newest = max(found, key=lambda one: one.run.opened_time if one.run is not None else 0.0)
        by_name = all(one.run is not None and name in (one.run.name, LATEST) for one in found)
        if len(found) > 1 and not by_name:
            raise InvalidInput(f"{name} is in {', '.join(shown(one.url) for one in found)}; name one with --log")
        if namesakes > 1 and newest.kind == "run" and newest.id != name:
            click.echo(f"{namesakes} runs are named {printable(name)}; this is the newest, {newest.id}.", err=True)
        yield newest


def _matching(place: Located, name: str, kinds: Sequence[Kind]) -> Located:
    """What a name stands for in one log. A run's name comes before the beginnings of ids. Raises `NotFound`."""
    runs = place.book.runs
    begins = next((kind for prefix, kind in _PREFIXES.items() if name.startswith(prefix)), None)
    named = name in runs or any(run.name == name for run in runs.values()) or name == LATEST
    if "run" in kinds and (named or begins == "run" or len(kinds) == 1):
        run = find_run(runs, name)
        return replace(place, id=run.run_id, run=run)
    if "rollout" in kinds and begins != "resources":
        try:
            return replace(place, kind="rollout", id=find_rollout(place.log, name))
        except NotFound:
            if begins == "rollout":
                raise
    if "resources" in kinds and begins != "rollout":
        found = resources_named(place.log, name)
        if found is not None:
            return replace(place, kind="resources", id=found)
    raise NotFound(f"there is no run, no rollout and no resources of the id or name {name}; `agl ps` lists the runs")


_PREFIXES: dict[str, Kind] = {"run-": "run", "rs-": "resources", "ro-": "rollout", "at-": "rollout"}


def resources_named(log: Log, name: str) -> str | None:
    """The resources id that is `name`, or the only one that begins so. Raises `InvalidInput` for several."""
    from ..algorithms.runs.report import LogReader

    known = list(LogReader(log).resources())
    if name in known:
        return name
    found = [one for one in known if name.startswith("rs-") and one.startswith(name)]
    if len(found) > 1:
        raise InvalidInput(f"{name} may be any of {len(found)} resources: {', '.join(found[:10])}")
    return found[0] if found else None


LOOKING_SECONDS = 5.0
"""How long a command that only looks waits for a store that does not answer."""
