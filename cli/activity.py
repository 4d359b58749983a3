"""`agl log tail` without a topic: what happened to rollouts and runs, with rewards, and none of the log's internals."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..core.events.run_events import RunClosed, RunOpened, decode_run
from ..core.fold.apply import apply
from ..core.fold.state import State
from ..core.log.interface import EVERYWHERE, Log
from ..projections.facts.derived_topic import batch_of, plain_facts_of
from ..projections.history.replay import control_records
from ..projections.replica.snapshots import read_snapshot
from ..projections.spans.blobs import Blobs
from ..projections.spans.schema import key_range
from ..projections.spans.span_log import SpanBook
from .reading import POLL_SECONDS, Filters
from .records import View
from .terminal import printable, status, when

_SHOWN = frozenset({
    "rollout.enqueued", "attempt.claimed", "attempt.failed", "attempt.timeout", "attempt.unresponsive", "attempt.late",
    "rollout.completed", "rollout.reopened", "resources.published", "run.opened", "run.closed", "algorithm.decided",
})  # fmt: skip
_NO_LIMIT_MB = 1e9


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
        self._log = log
        self._spans = SpanBook(log, Blobs(log, _NO_LIMIT_MB))
        restored = read_snapshot(log) if from_snapshot else None
        self._state = State() if restored is None else restored.state
        self._offset = 0 if restored is None else restored.next_offset
        self.from_start = restored is None

    def read(self, filters: Filters) -> Iterator[Callable[[], Activity]]:
        """What happened up to the end of the log as it is now; called, each gives its text, which reads spans."""
        for record in control_records(self._log, offset=self._offset):
            self._offset = record.offset + 1
            position = self._state.position
            outcome = apply(self._state, record.value)
            run = decode_run(record.value)
            if run is not None:
                found = Activity(position, run.time_us / 1e6, _type_of(run.event), "", "", _of_run(run.event))
                if _matches(found, filters):
                    yield lambda found=found: found
                continue
            for fact in plain_facts_of(batch_of(outcome), self._log.log_id):
                found = Activity(
                    position, fact["time"], fact["type"], fact["rollout_id"] or "", fact["attempt_id"] or "", ""
                )
                if _matches(found, filters):
                    yield lambda found=found, fact=fact: self._described(found, fact)

    def _described(self, found: Activity, fact: dict[str, Any]) -> Activity:
        found.text = _text(fact)
        if found.type == "rollout.completed" and found.attempt_id:
            reward = self._reward(found.rollout_id, found.attempt_id)
            found.text += ", no reward" if reward is None else f", reward {reward:.4g}"
        return found

    def _reward(self, rollout_id: str, attempt_id: str) -> float | None:
        from ..core.spans.readers import final_reward

        rollout = self._state.rollouts.get(rollout_id)
        within = EVERYWHERE if rollout is None else key_range(rollout)
        return final_reward(self._spans.read(rollout_id, within=within), attempt_id)


def last_activities(log: Log, filters: Filters, count: int) -> tuple[list[Activity], ActivityReader]:
    """The last `count` that match, and the reader that goes on behind them."""
    reader = ActivityReader(log, from_snapshot=filters.everything)
    kept = deque(reader.read(filters), maxlen=count)
    if len(kept) < count and not reader.from_start:
        reader = ActivityReader(log)
        kept = deque(reader.read(filters), maxlen=count)
    return [found() for found in kept], reader


def follow_activities(reader: ActivityReader, filters: Filters, show: Callable[[Activity], None]) -> None:
    """Show what comes, for ever, or until the time of `filters.until` has passed."""
    while True:
        for found in reader.read(filters):
            show(found())
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


def _text(fact: dict[str, Any]) -> str:
    data, number = fact["data"], fact["data"].get("sequence_id", "")
    match fact["type"]:
        case "rollout.enqueued":
            return "in the queue"
        case "attempt.claimed":
            return f"attempt {number} claimed by {printable(str(data.get('worker_id') or 'a worker without a name'))}"
        case "attempt.late":
            return f"attempt {number} reported too late: {data['status']}"
        case "rollout.completed":
            return status(str(data["status"]))
        case "rollout.reopened":
            return "restarted, a new generation"
        case "resources.published":
            return f"resources {printable(str(data['resources_id']))} version {data['version']} published"
        case kind:
            return f"attempt {number} {status(kind.partition('.')[2])}"


__all__ = ["Activity", "ActivityReader", "follow_activities", "last_activities"]
