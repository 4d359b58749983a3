"""The table of verdicts forgets by log position and survives a snapshot."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentlightning.core.fold.deduplication import Verdict, VerdictTable


def filled(count: int, window: int) -> VerdictTable:
    table = VerdictTable()
    for position in range(count):
        verdict = Verdict(position, "" if position % 2 else "late", f"ro#{position}")
        table.add(position.to_bytes(8, "big"), window, f"c{position}", verdict)
    return table


@given(st.integers(1, 80), st.integers(1, 30))
def test_exactly_the_last_window_of_positions_is_remembered(count: int, window: int) -> None:
    table = filled(count, window)
    first = max(0, count - window)
    assert len(table) == count - first
    for position in range(count):
        known = table.get(f"c{position}")
        assert (known is not None) == (position >= first) == (table.print_at(position) is not None)
        assert known is None or (known.position == position and known.accepted == bool(position % 2))
    assert table.print_at(count) is None
    assert table.print_at(-1) == (b"" if first == 0 else None)


@given(st.integers(0, 60), st.integers(1, 30))
def test_a_snapshot_of_the_table_goes_on_like_the_table(count: int, window: int) -> None:
    table = filled(count, window)
    again = VerdictTable.load(table.dump())
    for one in (table, again):
        one.add(b"x" * 8, window, "new", Verdict(count))
    assert again.dump() == table.dump()
