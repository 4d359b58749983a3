"""The topics `facts` and `tasks` of a log that does not store them: derived from the control records while they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...core.errors import InvalidInput
from ...core.fold.apply import apply
from ...core.fold.state import State
from ...core.log.interface import Log, NewRecord, Record
from ...core.log.topics import CONTROL, FACTS, TASKS
from .feed import hear, plain_facts_of

READ_RECORDS = 1024
CLAIMABLE = "rollout.claimable"


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
        self._log = log
        self._state = State()
        self._control_offset = 0
        self._offset = 0

    def read(self) -> Sequence[Record]:
        """The next records: an empty list where the log has no more control records at the moment.

        Blocks for the I/O. Raises `LogCorrupt` at a damaged control record.
        """
        while True:
            records = self._log.read(CONTROL, 0, self._control_offset, READ_RECORDS, headers=False)
            if not records:
                return []
            self._control_offset = records[-1].offset + 1
            found = [made for record in records for made in self._derive(record)]
            if found:
                return found

    def _derive(self, record: Record) -> list[Record]:
        outcome = apply(self._state, record.value)
        made: list[Record] = []
        heard = hear(outcome, self._state)
        for fact in plain_facts_of(heard, self._log.log_id) if heard is not None else ():
            if self.topic == TASKS and fact["type"] != CLAIMABLE:
                continue
            new = record_of(fact)
            made.append(Record(self.topic, 0, self._offset, new.key, new.value, new.timestamp_us, new.headers))
            self._offset += 1
        return made
