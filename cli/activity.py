"""`agl log tail` without a topic: what happened to rollouts and runs, with rewards, and none of the log's internals."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..core.events import fact
from ..core.events.fact import FactData
from ..core.events.run_events import RunClosed, RunOpened, decode_run
from ..core.fold.apply import Outcome
from ..core.log.interface import Log, Record
from ..projections.facts.derived_topic import Refold
from ..projections.replica.snapshots import read_snapshot
from .reading import POLL_SECONDS, Filters
from .records import View
from .terminal import printable, status, when

_SHOWN = frozenset({
    "rollout.enqueued", "attempt.claimed", "attempt.failed", "attempt.timeout", "attempt.unresponsive", "attempt.late",
    "rollout.completed", "rollout.reopened", "resources.published", "run.opened", "run.closed", "algorithm.decided",
})  # fmt: skip


@dataclass
class Activity:
    """One thing that happened: at a position of the control log, at a time (Unix seconds), in a few words."""

    position: int
    time: float
    type: str
    rollout_id: str
    attempt_id: str
    text: str

    def line(self) -> str:
        """As `agl log tail` prints it."""
        return f"{self.position:>8,}  {when(self.time)}  {printable(self.rollout_id or '-'):15}  {self.text}"


class ActivityReader:
    """Folds the control log and gives what happened, in order; it goes on where it stopped. Blocks for the I/O."""

    def __init__(self, log: Log, from_snapshot: bool = False) -> None:
        restored = read_snapshot(log) if from_snapshot else None
        self._refold = Refold(log, restored)
        self.from_start = restored is None

    def read(self, filters: Filters) -> Iterator[Activity]:
        """What happened up to the end of the log as it is now."""
        while folded := self._refold.advance():
            for record, outcome in folded:
                for found in _activities(record, outcome):
                    if _matches(found, filters):
                        yield found


def _activities(record: Record, outcome: Outcome) -> Iterator[Activity]:
    run = decode_run(record.value)
    if run is not None:
        yield Activity(outcome.position, run.time_us / 1e6, _type_of(run.event), "", "", _of_run(run.event))
    time_us = outcome.proposal.time_us if outcome.proposal is not None else 0
    for one in outcome.facts:
        if one.type in _SHOWN:
            yield Activity(
                outcome.position, time_us / 1e6, one.type, one.rollout_id or "", one.attempt_id or "", _text(one)
            )


def last_activities(log: Log, filters: Filters, count: int) -> tuple[list[Activity], ActivityReader]:
    """The last `count` that match, and the reader that goes on behind them."""
    reader = ActivityReader(log, from_snapshot=filters.everything)
    kept = deque(reader.read(filters), maxlen=count)
    if len(kept) < count and not reader.from_start:
        reader = ActivityReader(log)
        kept = deque(reader.read(filters), maxlen=count)
    return list(kept), reader


def follow_activities(reader: ActivityReader, filters: Filters, show: Callable[[Activity], None]) -> None:
    """Show what comes, for ever, or until the time of `filters.until` has passed."""
    while True:
        for found in reader.read(filters):
            show(found)
        if filters.until.time is not None and time.time() >= filters.until.time:
            return
        time.sleep(POLL_SECONDS)


def _matches(found: Activity, filters: Filters) -> bool:
    if found.type not in _SHOWN:
        return False
    return filters.match(
        View(
            "control", 0, found.position, found.position, found.time, "", found.type,
            [found.rollout_id] if found.rollout_id else [], [found.attempt_id] if found.attempt_id else [],
        )
    )  # fmt: skip


def _type_of(event: Any) -> str:
    return str(event.__struct_config__.tag)


def _of_run(event: Any) -> str:
    if isinstance(event, RunOpened):
        return f"run {printable(event.run_id)} {printable(event.name)} opened, algorithm {printable(event.algorithm) or '-'}"
    if isinstance(event, RunClosed):
        return f"run {printable(event.run_id)} closed: {status(printable(event.outcome))}"
    return f"run {printable(event.run_id)} decided {printable(event.kind)}"


def _text(one: FactData) -> str:
    match one:
        case fact.RolloutEnqueued():
            return "in the queue"
        case fact.AttemptClaimed():
            return f"attempt {one.sequence_id} claimed by {printable(one.worker_id or 'a worker without a name')}"
        case fact.AttemptLate():
            return f"attempt {one.sequence_id} reported too late: {one.status}"
        case fact.RolloutCompleted():
            reward = "no reward" if one.reward is None else f"reward {one.reward:.4g}"
            return f"{status(one.status)}, {reward}" if one.attempt_id else status(one.status)
        case fact.RolloutReopened():
            return "restarted, a new generation"
        case fact.ResourcesPublished():
            return f"resources {printable(one.resources_id)} version {one.version} published"
        case _:
            return f"attempt {one.sequence_id} {status(one.type.removeprefix('attempt.'))}"


__all__ = ["Activity", "ActivityReader", "follow_activities", "last_activities"]
