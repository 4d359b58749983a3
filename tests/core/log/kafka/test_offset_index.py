"""The index of offsets behind `read_key` on Kafka, as plain data: what was seen, and what is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentlightning.core.log.kafka.offset_index import OffsetIndex

PIECES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=20)


@given(PIECES, st.integers(0, 60), st.integers(0, 60))
def test_gaps_are_what_no_piece_covered(pieces: list[tuple[int, int]], first: int, end: int) -> None:
    index = OffsetIndex()
    seen: set[int] = set()
    for low, high in pieces:
        index.cover(low, high)
        seen.update(range(low, high))
    gaps = index.gaps(first, end)
    assert [offset for low, high in gaps for offset in range(low, high)] == [
        offset for offset in range(first, end) if offset not in seen
    ]
    assert all(low < high for low, high in gaps)
    assert index.end == max(seen, default=-1) + 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50))), st.integers(-1, 50))
def test_offsets_come_in_order_and_once_however_they_were_noted(noted: list[tuple[str, int]], after: int) -> None:
    index = OffsetIndex()
    for key, offset in noted:
        index.add(key, offset)
    for key in "abc":
        assert index.offsets(key, after) == sorted({one for name, one in noted if name == key and one > after})
    assert index.count == len(set(noted))
