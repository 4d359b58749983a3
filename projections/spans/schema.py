"""The records of the spans topic, and the pure fold that turns those of one rollout into ordered, unique spans."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from ...core.errors import LogCorrupt
from ...core.fold.state import Rollout
from ...core.log.interface import KeyRange, Record
from ...core.model.status import FINISHED

Number = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]


class SpanAdded(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="t", tag="span"):
    """A span of an attempt. `sequence_id` 0 or less: the rollout's counter gives the next number. `body`: user data.

    `reward`: the one that the body holds (core/spans/readers.py), None where it holds none.
    """

    rollout_id: str
    attempt_id: str
    span_id: str
    body: msgspec.Raw
    sequence_id: Number = 0
    reward: float | None = None


class SequenceReserved(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="t", tag="sequence"):
    """Somebody took the next `count` numbers of the rollout's counter."""

    rollout_id: str
    count: Annotated[int, msgspec.Meta(ge=1, le=2**31)] = 1


SpanRecord = SpanAdded | SequenceReserved
encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[SpanRecord] = msgspec.json.Decoder(SpanRecord)


def decode(value: bytes, offset: int = -1) -> SpanRecord:
    """Read the value of a record. Raises `LogCorrupt`."""
    try:
        return _decoder.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise LogCorrupt(f"the span record at {offset} cannot be read: {error}", position=offset, topic="spans") from None


def id_of(record: Record) -> str:
    """The id that the record's writer gave it, which names the call it came from."""
    return next((value for name, value in record.headers if name == "id"), "")


def last_sign_us(rollout: Rollout) -> int:
    """When a finished rollout was last known to be worked on, by the writers' clocks."""
    times = [rollout.ended_us or 0, *(one.ended_us or 0 for one in rollout.attempts)]
    return max(*times, *(one.beat_us or 0 for one in rollout.attempts))


def key_range(rollout: Rollout) -> KeyRange:
    """Where the spans of a rollout lie: not before its first attempt, and of a finished one not after its last sign of life.

    A span that comes later has a sign of life of its own in the control log.
    """
    if not rollout.attempts:
        return KeyRange(end=0)
    since_us = rollout.attempts[0].started_us
    if rollout.status not in FINISHED:
        return KeyRange(since_us=since_us)
    end = max(one.watermark or 0 for one in rollout.attempts)
    return KeyRange(end=end, since_us=since_us, until_us=last_sign_us(rollout))


class Counter:
    """What the records of one rollout have used up: the last number given and the spans seen.

    A span's identity is (attempt_id, span_id). Explicit numbers raise the counter; a duplicate changes nothing.
    """

    __slots__ = ("folded", "last", "reserved", "rewards", "seen", "total_bytes")

    def __init__(self) -> None:
        self.folded = -1
        """Offset of the last record that was folded; kept only by who shares the log with other writers."""
        self.last = 0
        self.reserved: dict[str, int] = {}
        """Record id -> the first number that a reservation of this id took: a repeated one answers it again."""
        self.rewards: dict[str, tuple[int, float]] = {}
        """Attempt -> number and reward of its last reward span, in the order of the numbers."""
        self.seen: set[tuple[str, str]] = set()
        self.total_bytes = 0

    def step(self, record: SpanRecord, record_id: str = "") -> int | None:
        """Return the number of the span or the first reserved one; None for a duplicate span."""
        if isinstance(record, SequenceReserved):
            first = self.last + 1
            self.last += record.count
            return self.reserved.setdefault(record_id, first) if record_id else first
        key = (record.attempt_id, record.span_id)
        if key in self.seen:
            return None
        self.seen.add(key)
        self.total_bytes += memoryview(record.body).nbytes
        number = record.sequence_id if record.sequence_id > 0 else self.last + 1
        self.last = max(self.last, number)
        if record.reward is not None and number >= self.rewards.get(record.attempt_id, (0, 0.0))[0]:
            self.rewards[record.attempt_id] = (number, record.reward)
        return number

    def final_rewards(self) -> dict[str, float]:
        """Attempt -> its final reward; what `find_final_reward` gives for its spans as they are read."""
        return {attempt_id: reward for attempt_id, (_, reward) in self.rewards.items()}


def fold_spans(records: Iterable[SpanRecord]) -> list[tuple[int, SpanAdded]]:
    """(sequence id, span) of one rollout's records in log order, without duplicates."""
    counter = Counter()
    spans: list[tuple[int, SpanAdded]] = []
    for record in records:
        number = counter.step(record)
        if number is not None and isinstance(record, SpanAdded):
            spans.append((number, record))
    return spans
