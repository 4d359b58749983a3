"""Which interval is the shortest that covers another one, found without comparing all with all."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Interval", "enclosing"]

# A covering interval is looked for among this many, those that began last first: enough for any
# nesting that people write, and a bound on what ten thousand spans with equal times can cost.
_LOOKED_AT = 64


@dataclass(frozen=True)
class Interval:
    """From ``start`` to ``end``, and what it belongs to."""

    start: float
    end: float
    of: Any


def enclosing(intervals: Sequence[Interval]) -> Callable[[float, float, Callable[[Any], bool]], Any]:
    """A function ``(start, end, allowed)`` -> what the tightest interval strictly around it belongs to, or None.

    Strictly: it covers the given one and is longer. Of equals the one that began last.
    """
    ordered = sorted(intervals, key=lambda interval: interval.start)
    starts = [interval.start for interval in ordered]
    size = 1
    while size <= len(ordered):
        size *= 2
    # A tree of maxima: latest[1] is the latest end of all, latest[size + i] the end of the i-th.
    latest = [float("-inf")] * (2 * size)
    for index, interval in enumerate(ordered):
        latest[size + index] = interval.end
    for index in range(size - 1, 0, -1):
        latest[index] = max(latest[2 * index], latest[2 * index + 1])

    def before(limit: int, end: float) -> int:
        """The last index below ``limit`` whose interval ends at ``end`` or later; -1 without one."""
        index = size + limit
        while index > 1:
            if index % 2 and latest[index - 1] >= end:
                index -= 1
                while index < size:
                    index = 2 * index + (1 if latest[2 * index + 1] >= end else 0)
                return index - size
            index //= 2
        return -1

    def find(start: float, end: float, allowed: Callable[[Any], bool]) -> Any:
        best, best_slack = None, float("inf")
        index = bisect_right(starts, start)
        for _ in range(_LOOKED_AT):
            # From here on every interval leaves at least this much room.
            index = before(index, end)
            if index < 0 or start - starts[index] >= best_slack:
                break
            candidate = ordered[index]
            slack = (start - candidate.start) + (candidate.end - end)
            if 0 < slack < best_slack and allowed(candidate.of):
                best, best_slack = candidate.of, slack
        return best

    return find
