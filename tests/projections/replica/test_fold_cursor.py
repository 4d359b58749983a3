"""The fold cursor: it folds to a position, goes on from there, and stops where the fold halts."""

from __future__ import annotations

from concurrent.futures import Future

from agentlightning.core.fold.apply import fold
from agentlightning.core.log.interface import NewRecord
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.replica.fold_cursor import FoldCursor


def log_of(count: int) -> MemoryLog:
    """Records that are no events: the fold counts and chains them all the same."""
    log = MemoryLog()
    answered: Future[object] = Future()
    records = [NewRecord("", b"{%d}" % number, 0) for number in range(count)]
    log.append(CONTROL, 0, records, answered.set_result)
    answered.result()
    return log


def test_it_stops_at_a_position_and_goes_on_from_there() -> None:
    with log_of(9) as log:
        cursor = FoldCursor(log)
        assert [record.offset for record, _ in cursor.fold(to=4)] == [0, 1, 2, 3]
        assert (cursor.state.position, cursor.next_offset) == (4, 4)
        assert list(cursor.fold(to=4)) == []
        assert [outcome.position for _, outcome in cursor.advance(3)] == [4, 5, 6]
        assert [outcome.position for _, outcome in cursor.advance(3, to=8)] == [7]
        assert len(list(cursor.fold())) == 1 and cursor.advance(3) == []
        assert cursor.state.fingerprint == fold(record.value for record in log.read(CONTROL, 0, 0)).fingerprint


def test_the_state_is_that_of_the_outcome_also_where_the_caller_leaves_early() -> None:
    with log_of(5) as log:
        cursor = FoldCursor(log)
        for _, outcome in cursor.fold():
            assert cursor.state.position == outcome.position + 1
            if outcome.position == 2:
                break
        assert [outcome.position for _, outcome in cursor.fold()] == [3, 4]


def test_a_halted_state_is_not_folded_on() -> None:
    with log_of(3) as log:
        cursor = FoldCursor(log)
        cursor.advance(1)
        cursor.state.halted = "a newer release wrote this"
        assert list(cursor.fold()) == [] and cursor.advance(5) == []
        assert cursor.next_offset == 1
