"""A store as it was: the reading half of `LightningStore`, answered from a log at a position that moves forward.

The control log is folded up to the position and no further, and the store's own methods answer from that state, so a
question has the answer that it had then. Spans have no place in the control log: of a finished rollout those below its
watermark are seen, of any other those that were written before the newest folded event by the writers' clocks.
Heartbeats are not kept in the log in order; they are not seen.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

from ...core.errors import Refused
from ...core.events import payload
from ...core.events.fact import RolloutRestored
from ...core.fold.apply import Outcome
from ...core.fold.state import Attempt, Rollout
from ...core.log.interface import EVERYWHERE, Log
from ...core.log.topics import SPANS, partition_of
from ...core.model.span import Span
from ...core.model.status import FINISHED
from ..archive.index import ArchiveIndex
from ..facts.derived_topic import FactBatch, batch_of
from ..replica.fold_cursor import FoldCursor
from ..spans.blobs import NO_LIMIT_MB, Blobs
from ..spans.span_log import decode, fold_spans, key_range, spans_of
from ..store.engine import Engine
from ..store.resources import ResourceMethods, WorkerMethods
from ..store.rollouts import RolloutMethods
from ..store.spans import SpanMethods
from ..store.views import Views


class PastSpans:
    """The spans of a log as they were; the part of `SpanLog` that reads."""

    def __init__(self, log: Log, past: PastEngine) -> None:
        self._log = log
        self._past = past

    def read(self, rollout_id: str, lost: list[str] | None = None) -> list[Span]:
        """As `SpanLog.read`."""
        rollout = self._past.load(rollout_id)
        with self._past.node.lock:
            within = EVERYWHERE if rollout is None else key_range(rollout)
            marks = [] if rollout is None else [one.watermark for one in rollout.attempts if one.watermark is not None]
            over = rollout is not None and rollout.status in FINISHED and marks
            now_us = self._past.time_us
        records = self._log.read_key(SPANS, rollout_id, within=within)
        if over:
            seen = [one for one in records if one.offset < max(marks)]
        else:
            seen = [one for one in records if one.timestamp_us <= now_us]
        found = fold_spans(decode(one.value, one.offset) for one in seen)
        return spans_of(found, self._past.blobs, lost)

    def lost(self, rollout_id: str, created_us: int, watermark: int) -> bool:
        """Whether spans that were acknowledged then are gone."""
        return self._log.ends(SPANS, partition_of(rollout_id, self._log.partitions(SPANS)))[1] < watermark


class PastEngine(Views):
    """What the reading methods ask of an engine, at a position: `to` folds on. Thread-safe."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._cursor = FoldCursor(log)
        self.node = SimpleNamespace(lock=threading.RLock(), state=self._cursor.state)
        self.blobs = Blobs(log, NO_LIMIT_MB)
        self.archive_index = ArchiveIndex(None, log.log_id)
        self.spans = PastSpans(log, self)
        self.heartbeats = SimpleNamespace(workers={})
        self.batches: list[FactBatch] = []
        self.time_us = 0

    def to(self, position: int) -> int:
        """Fold until `position` records are folded, or all that there are; how many are. Blocks for the I/O."""
        with self.node.lock:
            for _, outcome in self._cursor.fold(position):
                self._folded(outcome)
            return self._cursor.state.position

    def _folded(self, outcome: Outcome) -> None:
        state = self._cursor.state
        if outcome.proposal is not None:
            self.time_us = outcome.proposal.time_us
        if outcome.archived:
            self.archive_index.add(outcome.archived, outcome.position + 1, state.fingerprint)
        if outcome.facts and isinstance(outcome.facts[0], RolloutRestored):
            rollout = state.rollouts[str(outcome.facts[0].rollout_id)]
            self.archive_index.remove(rollout, outcome.position + 1, state.fingerprint)
        batch = batch_of(outcome)
        if batch is not None:
            self.batches.append(batch)

    def is_finished(self, rollout_id: str) -> bool | None:
        """Whether the rollout had its outcome; None for one that was not there yet."""
        rollout = self.node.state.rollouts.get(rollout_id)
        if rollout is not None:
            return rollout.status in FINISHED
        return True if self.node.state.archived.get(rollout_id) is not None else None

    async def indexed(self) -> None:
        """Nothing has to be waited for."""

    def fetch(self, reference: payload.Reference) -> bytes:
        """The bytes of a payload that lies in blobs."""
        return self.blobs.fetch(reference)

    def beat_us(self, rollout: Rollout, attempt: Attempt) -> int | None:
        """No heartbeat is known but those of the events."""
        return None

    def close(self) -> None:
        """Forget; the log stays open."""
        self.archive_index.close()


class PastStore(RolloutMethods, SpanMethods, ResourceMethods, WorkerMethods):
    """Answers questions as the store did when so many control records were folded; `past.to` moves it forward.

    What would change something raises `Refused` (reason `past`); who replays an algorithm overrides what it may do.
    """

    def __init__(self, log: Log) -> None:
        self.past = PastEngine(log)
        self.engine = cast(Engine, cast(Any, self.past))

    @property
    def at(self) -> int:
        """How many control records are folded."""
        return self.past.node.state.position

    def position(self) -> str:
        """The token of this position, as `EventLogStore.position` gives it."""
        return f"{self.past.log.log_id}::{self.at}"


def _refusing(name: str) -> Any:
    async def method(self: PastStore, *_: Any, **__: Any) -> Any:
        raise Refused(f"{name} is refused: this is a store as it was at position {self.at}", reason="past")

    method.__name__ = name
    method.__doc__ = "Refused: the past cannot be changed."
    return method


CHANGING = (
    "start_rollout", "enqueue_rollout", "enqueue_many_rollouts", "dequeue_rollout", "dequeue_many_rollouts",
    "start_attempt", "update_rollout", "update_attempt", "add_span", "add_many_spans", "add_otel_span",
    "get_next_span_sequence_id", "get_many_span_sequence_ids", "add_resources", "update_resources", "update_worker",
)  # fmt: skip
"""The methods of the contract that change something."""

for _name in CHANGING:
    setattr(PastStore, _name, _refusing(_name))
