"""The topics `facts` and `tasks`, derived from the control records while they are read: facts, their records, a reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...core.errors import InvalidInput
from ...core.events.fact import FactData, RolloutClaimable
from ...core.fold.apply import Outcome
from ...core.log.interface import Log, NewRecord, Record
from ...core.log.topics import FACTS, TASKS
from ...core.model.rollout import Fact
from ..replica.fold_cursor import FoldCursor

READ_RECORDS = 1024
_OF_ENVELOPE = ("type", "rollout_id", "attempt_id")


class FactBatch(msgspec.Struct, frozen=True, gc=False):
    """What one control record led to, kept as the fold made it: most facts are never asked for.

    Tens of thousands are kept: the garbage collector leaves them out of its walks, since nothing in them refers back.
    """

    position: int
    time_us: int
    facts: Sequence[FactData]


def batch_of(outcome: Outcome) -> FactBatch | None:
    """The facts of one record; None where it had none."""
    if outcome.proposal is None or not outcome.facts:
        return None
    return FactBatch(outcome.position, outcome.proposal.time_us, tuple(outcome.facts))


def facts_of(batch: FactBatch | None, log_id: str) -> list[Fact]:
    """The facts as subscribers get them."""
    return [Fact(**fact) for fact in plain_facts_of(batch, log_id)]


def plain_facts_of(batch: FactBatch | None, log_id: str, kind: type[FactData] = FactData) -> list[dict[str, Any]]:
    """The facts of a kind as plain data, in the order of the fields of `Fact`: what is published as JSON."""
    facts: list[dict[str, Any]] = []
    for index, one in enumerate(batch.facts if batch is not None else ()):
        if not isinstance(one, kind):
            continue
        assert batch is not None
        data: dict[str, Any] = msgspec.to_builtins(one)
        for name in _OF_ENVELOPE:
            data.pop(name, None)
        facts.append(
            {
                "id": f"{batch.position}/{index}",
                "type": one.type,
                "position": batch.position,
                "log_id": log_id,
                "time": batch.time_us / 1_000_000,
                "rollout_id": one.rollout_id,
                "attempt_id": one.attempt_id,
                "data": data,
            }
        )
    return facts


def record_of(fact: Mapping[str, Any]) -> NewRecord:
    """A fact as the record that is derived or published, from its plain form."""
    return NewRecord(
        key=fact["rollout_id"] or "",
        value=msgspec.json.encode(fact),
        timestamp_us=round(fact["time"] * 1_000_000),
        headers=(("t", fact["type"]), ("id", fact["id"]), ("position", str(fact["position"]))),
    )


class DerivedTopic:
    """A reader of one derived topic; it folds the control log from its first record and goes on where it stopped.

    Records come in log order with offsets counted from 0, keyed by rollout id. The value of a fact is its JSON, its id
    "<position>/<index>"; a task is the fact that a rollout became claimable, with that fact's id. Both repeat
    their position, type and id as headers.
    """

    def __init__(self, log: Log, topic: str) -> None:
        if topic not in (FACTS, TASKS):
            raise InvalidInput(f"topic {topic!r} is not derived; derived ones are {FACTS!r} and {TASKS!r}")
        self.topic = topic
        self._log_id = log.log_id
        self._cursor = FoldCursor(log)
        self._offset = 0

    def read(self) -> Sequence[Record]:
        """The next records: an empty list where the log has no more control records at the moment.

        Blocks for the I/O. Raises `LogCorrupt` at a damaged control record.
        """
        made: list[Record] = []
        while not made and (folded := self._cursor.advance(READ_RECORDS)):
            for _, outcome in folded:
                kind = FactData if self.topic == FACTS else RolloutClaimable
                for fact in plain_facts_of(batch_of(outcome), self._log_id, kind):
                    new = record_of(fact)
                    made.append(Record(self.topic, 0, self._offset, new.key, new.value, new.timestamp_us, new.headers))
                    self._offset += 1
        return made
