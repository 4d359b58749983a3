"""Timelines: what happened to the rollouts and runs of a log, and what happened in one run, in log order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ...core.events.codec import type_of
from ...core.events.run_events import RunRecord, decode_run
from ...core.fold.apply import Outcome
from ...core.log.interface import Log
from ...core.log.topics import CONTROL
from ..facts.derived_topic import batch_of, plain_facts_of
from ..replica.fold_cursor import FoldCursor
from ..replica.snapshots import read_snapshot
from .record_view import Decoder, View
from .rollout_history import rollouts_of
from .topic_reader import POLL_SECONDS, Filters

ACTIVITIES = frozenset({
    "rollout.enqueued", "attempt.claimed", "attempt.failed", "attempt.timeout", "attempt.unresponsive", "attempt.late",
    "rollout.completed", "rollout.reopened", "resources.published", "run.opened", "run.closed", "algorithm.decided",
})  # fmt: skip
"""Types of facts and run events that concern a user; the others are internals of the log."""


class ActivityReader:
    """Folds the control log and gives what happened, in order; it continues where it stopped. Blocks for the I/O."""

    def __init__(self, log: Log, from_snapshot: bool = False) -> None:
        restored = read_snapshot(log) if from_snapshot else None
        self._cursor = FoldCursor(log) if restored is None else restored
        self.from_start = restored is None

    def read(self, filters: Filters) -> Iterator[View]:
        """What happened up to the end of the log as it is now; the body is the event of a run, or a fact."""
        for record, outcome in self._cursor.fold():
            for view in _views(outcome, decode_run(record.value)):
                if filters.match(view):
                    yield view


def _views(outcome: Outcome, run: RunRecord | None) -> Iterator[View]:
    position = outcome.position
    if run is not None:
        yield View(CONTROL, 0, position, position, run.time_us / 1e6, "", type_of(run.event), body=run.event)
    time_us = outcome.proposal.time_us if outcome.proposal is not None else 0
    for fact in outcome.facts:
        if fact.type in ACTIVITIES:
            rollouts, attempts = ([one] if one else [] for one in (fact.rollout_id, fact.attempt_id))
            yield View(CONTROL, 0, position, position, time_us / 1e6, "", fact.type, rollouts, attempts, body=fact)


def last_activities(log: Log, filters: Filters, count: int) -> tuple[list[View], ActivityReader]:
    """The last `count` that match, and the reader that continues behind them."""
    reader = ActivityReader(log, from_snapshot=filters.everything)
    kept = deque(reader.read(filters), maxlen=count)
    if len(kept) < count and not reader.from_start:
        reader = ActivityReader(log)
        kept = deque(reader.read(filters), maxlen=count)
    return list(kept), reader


def follow_activities(reader: ActivityReader, filters: Filters, show: Callable[[View], None]) -> None:
    """Show what comes, without end, or until the time of `filters.until` has passed."""
    while True:
        for view in reader.read(filters):
            show(view)
        if filters.until.time is not None and time.time() >= filters.until.time:
            return
        time.sleep(POLL_SECONDS)


@dataclass
class RunStep:
    """One record of a run: `position` in the control log, `time` in Unix seconds, the event, its rollouts of this run.

    `detail` is the event of a run with its user data decoded, or the verdict and the facts of any other record.
    """

    position: int
    time: float
    type: str
    event: Any
    rollouts: list[str]
    detail: dict[str, Any]


def run_timeline(log: Log, run_id: str, rollouts: set[str], last: int | None = None) -> Iterator[RunStep]:
    """What the control log holds of a run up to position `last`, in order, with what the fold made of it."""
    decoder = Decoder(log)
    for record, outcome in FoldCursor(log).fold(None if last is None else last + 1):
        run = decode_run(record.value)
        if run is None:
            step = _of_rollouts(outcome, rollouts, log.log_id)
        else:
            step = _of_run(outcome.position, run, decoder) if run.event.run_id == run_id else None
        if step is not None:
            yield step


def _of_run(position: int, record: RunRecord, decoder: Decoder) -> RunStep:
    event = record.event
    detail: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(event))
    for field in ("parameters", "summary", "content"):
        if field in detail:
            detail[field] = decoder.payload(bytes(getattr(event, field)))
    detail.pop("datasets", None)
    return RunStep(position, record.time_us / 1_000_000, type_of(event), event, [], detail)


def _of_rollouts(outcome: Outcome, mine: set[str], log_id: str) -> RunStep | None:
    """A record about rollouts of the run, or about resources, which any run may use. Refused proposals are included."""
    proposal, verdict = outcome.proposal, outcome.verdict
    if proposal is None or verdict is None:
        return None
    about = [one for one in rollouts_of(proposal.event) if one in mine]
    kind = type_of(proposal.event)
    if not about and kind != "resources.published":
        return None
    facts = plain_facts_of(batch_of(outcome), log_id)
    detail = {
        "verdict": "duplicate" if outcome.duplicate else verdict.reason or "accepted",
        "facts": [{name: fact[name] for name in ("id", "type", "rollout_id", "data")} for fact in facts],
    }
    return RunStep(outcome.position, proposal.time_us / 1_000_000, kind, proposal.event, about, detail)
