"""The fold cursor: a state of its own, folded from the control log up to any position."""

from __future__ import annotations

from collections.abc import Iterator

from ...core.fold.apply import Outcome, apply
from ...core.fold.state import State
from ...core.log.interface import Log, Record
from ...core.log.topics import CONTROL

READ_RECORDS = 8192


def control_records(log: Log, offset: int = 0) -> Iterator[Record]:
    """The control records from `offset` on, in order. Raises `LogCorrupt` at a damaged one."""
    while records := log.read(CONTROL, 0, offset, READ_RECORDS, headers=False):
        yield from records
        offset = records[-1].offset + 1


class FoldCursor:
    """Folds a control log from its first record, or from a snapshot. Every method blocks for the I/O.

    `state` is what the records before `next_offset` lead to. A state that is halted is not folded on.
    """

    def __init__(self, log: Log, state: State | None = None, next_offset: int = 0) -> None:
        self.state = State() if state is None else state
        self.next_offset = next_offset
        self._log = log

    def fold(self, to: int | None = None) -> Iterator[tuple[Record, Outcome]]:
        """Each next record with its outcome, right after it was folded, until `to` records are folded or the log ends.

        Raises `LogCorrupt` at a damaged record.
        """
        state = self.state
        while to is None or state.position < to:
            records = self._read(READ_RECORDS, to)
            if not records:
                return
            for record in records:
                self.next_offset = record.offset + 1
                yield record, apply(state, record.value)
                if state.halted is not None:
                    return

    def advance(self, most: int, to: int | None = None) -> list[tuple[Record, Outcome]]:
        """As `fold`, at most so many records at once; an empty list where there are no more at the moment."""
        records = self._read(most, to)
        if records:
            self.next_offset = records[-1].offset + 1
        return [(record, apply(self.state, record.value)) for record in records]

    def _read(self, most: int, to: int | None) -> list[Record]:
        if self.state.halted is not None:
            return []
        most = most if to is None else min(most, to - self.state.position)
        return list(self._log.read(CONTROL, 0, self.next_offset, most, headers=False)) if most > 0 else []
