"""What there is to publish after a position: from memory where it is, else from the log folded once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

from msgspec import structs

from ...core.errors import AgentLightningError
from ...core.events import payload
from ...core.events.codec import Undecodable, UnknownEvent, decode
from ...core.events.fact import ENDS, RolloutCompleted
from ...core.fold.state import Attempt
from ...core.log.dead_letter import RECORD, ROLLOUT, DeadLetter, encode_letter, record_letter_id, rollout_letter_id
from ...core.log.interface import Log, NewRecord, Record
from ...core.log.topics import CONTROL
from ..replica.fold_cursor import FoldCursor
from ..replica.node import Node
from ..replica.snapshots import read_snapshot
from ..spans.blobs import Blobs
from .derived_topic import READ_RECORDS, FactBatch, batch_of
from .feed import FactFeed

Reason = Callable[[str, str | None], str]
"""(rollout id, attempt id) -> why the rollout was given up; empty where nobody knows any more."""
MOST_MB = 1e9
"""What is read here was taken by a store with a limit of its own."""
ROUND_RECORDS = 1024
SHOWN_BYTES = 65_536
"""So much of a record that nobody can read is in its letter; the record itself stays where it is."""


class Entry(NamedTuple):
    """One control record: what it led to, or what it is where nobody can read it."""

    batch: FactBatch | None
    position: int = -1
    poison: Record | None = None
    why: str = ""


class Source:
    """Hands out entries in the order of the log. One thread uses it."""

    def __init__(self, log: Log, node: Node, facts: FactFeed) -> None:
        self._log = log
        self._node = node
        self._facts = facts
        self._refold: FoldCursor | None = None

    def after(self, cursor: int) -> tuple[list[Entry], int]:
        """(entries after position `cursor`, the position up to which these are all). Raises `LogError`."""
        with self._node.lock:
            kept = self._facts.kept_after(cursor, ROUND_RECORDS)
            folded = self._node.state.position - 1
        if kept is not None:
            self._refold = None
            upto = kept[-1].position if len(kept) == ROUND_RECORDS else max(folded, cursor)
            return [Entry(heard) for heard in kept], upto
        if self._refold is None or self._refold.state.position > cursor + 1:
            self._refold = self._begin(cursor)
        entries = [
            Entry(batch) if (batch := batch_of(outcome)) is not None else _judged(record, outcome.position)
            for record, outcome in self._refold.advance(READ_RECORDS)
            if outcome.position > cursor and (outcome.facts or (outcome.proposal is None and outcome.verdict is None))
        ]
        return entries, max(cursor, self._refold.state.position - 1)

    def _begin(self, cursor: int) -> FoldCursor:
        restored = read_snapshot(self._log)
        return FoldCursor(self._log) if restored is None or restored.state.position > cursor + 1 else restored

    def at(self, offset: int, position: int) -> Entry:
        """The entry of a control record that led to nothing. Raises `LogError`."""
        records = self._log.read(CONTROL, 0, offset, 1, headers=False)
        return _judged(records[0], position) if records else Entry(None)


def _judged(record: Record, position: int) -> Entry:
    """A record that led to nothing, because nobody can read it or because only a newer release can."""
    try:
        decode(record.value)
    except UnknownEvent:
        return Entry(None)
    except Undecodable as undecodable:
        return Entry(None, position, record, str(undecodable) or type(undecodable).__name__)
    return Entry(None)


def letters_of(entry: Entry, reason: Reason) -> Iterator[NewRecord]:
    """The dead letters of an entry: a rollout whose last attempt failed, a record that nobody can read.

    `reason` is asked for the error of the attempt that was the last one.
    """
    if entry.poison is not None:
        yield encode_letter(_poison(entry.poison, entry))
    batch = entry.batch
    for index, one in enumerate(batch.facts if batch is not None else ()):
        if isinstance(one, RolloutCompleted) and one.status == "failed" and batch is not None:
            ends = [end for end in batch.facts if type(end) in ENDS and end.attempt_id == one.attempt_id]
            if ends and one.rollout_id is not None:
                letter = _given_up(batch, index, one, ends[0].type.removeprefix("attempt."))
                yield encode_letter(structs.replace(letter, reason=reason(one.rollout_id, one.attempt_id) or letter.reason))


def _given_up(batch: FactBatch, index: int, one: RolloutCompleted, how: str) -> DeadLetter:
    rollout_id = str(one.rollout_id)
    return DeadLetter(
        id=rollout_letter_id(rollout_id, one.generation),
        kind=ROLLOUT,
        source=rollout_id,
        reason=f"attempt {one.sequence_id} was the last one and ended as {how}",
        time=batch.time_us / 1_000_000,
        tries=one.sequence_id,
        rollout_id=rollout_id,
        attempt_id=one.attempt_id,
        position=batch.position,
        data={"fact": f"{batch.position}/{index}", "ended": how},
    )


def reason_of(last: Attempt, blobs: Blobs) -> str:
    """Why a rollout was given up: the error of its last attempt, or how that ended. Blocks where the error is a blob."""
    try:
        metadata = None if last.metadata is None else payload.decode(last.metadata, blobs.fetch)
    except AgentLightningError:
        metadata = None  # it is lost or of another release; how the attempt ended is known anyway
    error = cast("dict[str, Any]", metadata).get("error") if isinstance(metadata, dict) else None
    how = f"attempt {last.sequence_id} was the last one and ended as {last.status}"
    return f"{error} ({how})" if error else how


def _poison(record: Record, entry: Entry) -> DeadLetter:
    return DeadLetter(
        id=record_letter_id(CONTROL, 0, record.offset),
        kind=RECORD,
        source=f"{CONTROL}/0",
        reason=entry.why,
        time=record.timestamp_us / 1_000_000,
        position=entry.position,
        data={"topic": CONTROL, "offset": record.offset, "value": record.value[:SHOWN_BYTES].hex()},
    )
