"""The topics `facts` and `tasks` of a log that does not store them: derived from the control records while they are read."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..core.errors import InvalidInput
from ..core.fold import apply
from ..core.log import Log, Record
from ..core.state import State
from ..core.topics import CONTROL, FACTS, TASKS, partition_of
from .fact_feed import facts_of, hear

READ_RECORDS = 1024
_CLAIMABLE = "rollout.claimable"


class DerivedTopic:
    """A reader of one derived topic; it folds the control log from its first record and goes on where it stopped.

    Records come in log order with offsets counted from 0, keyed by rollout id. The value of a fact is its JSON, its id
    "<namespace>/<position>/<index>"; a task is the fact that a rollout became claimable, with that fact's id. Both repeat
    their position, type and id as headers.
    """

    def __init__(self, log: Log, topic: str, namespace: str = "default") -> None:
        if topic not in (FACTS, TASKS):
            raise InvalidInput(f"topic {topic!r} is not derived; derived ones are {FACTS!r} and {TASKS!r}")
        self.topic = topic
        self._log = log
        self._namespace = namespace
        self._partition = partition_of(namespace, log.partitions(CONTROL))
        self._state = State()
        self._control_offset = 0
        self._offset = 0

    def read(self) -> Sequence[Record]:
        """The next records: an empty list where the log has no more control records at the moment.

        Blocks for the I/O. Raises `LogCorrupt` at a damaged control record.
        """
        while True:
            records = self._log.read(CONTROL, self._partition, self._control_offset, READ_RECORDS, headers=False)
            if not records:
                return []
            self._control_offset = records[-1].offset + 1
            found = [made for record in records if record.key == self._namespace for made in self._derive(record)]
            if found:
                return found

    def _derive(self, record: Record) -> list[Record]:
        outcome = apply(self._state, record.value)
        made: list[Record] = []
        heard = hear(outcome, self._state)
        for fact in facts_of(heard, self._namespace, self._log.log_id) if heard is not None else ():
            if self.topic == TASKS and fact.type != _CLAIMABLE:
                continue
            made.append(
                Record(
                    topic=self.topic,
                    partition=0,
                    offset=self._offset,
                    key=fact.rollout_id or "",
                    value=msgspec.json.encode(fact.model_dump()),
                    timestamp_us=round(fact.time * 1_000_000),
                    headers=(("t", fact.type), ("id", fact.id), ("position", str(fact.position))),
                )
            )
            self._offset += 1
        return made
