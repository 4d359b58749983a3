"""What rewards say of a candidate: mean, interval, and an order in which little evidence never wins over much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Score", "score_of"]

_Z = 1.959963984540054
"""The 0.975 quantile of the standard normal distribution: a 95 % interval."""


@dataclass(frozen=True)
class Score:
    """The mean of `count` rewards; `low` and `high` bound the true mean with 95 % confidence.

    Without a reward nothing is known: the mean is NaN, and the interval is the whole range.
    """

    count: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as "0.83 (0.66 to 0.93)"."""
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})" if self.count else "no rewards"


def score_of(rewards: Sequence[float], least: float = 0.0, most: float = 1.0) -> Score:
    """The score of rewards in the range from `least` to `most`.

    Wilson's interval (JASA 22, 1927) on rewards that are mapped to 0 to 1. It is exact in its assumptions for rewards that
    are one end or the other; others vary less, so for them it is wider than it need be.
    """
    count, width = len(rewards), most - least
    if count == 0:
        return Score(0, math.nan, least, most)
    mean = math.fsum(rewards) / count
    if width <= 0:
        return Score(count, mean, mean, mean)
    p = min(1.0, max(0.0, (mean - least) / width))
    shrink = 1 + _Z * _Z / count
    centre = (p + _Z * _Z / (2 * count)) / shrink
    half = _Z * math.sqrt(p * (1 - p) / count + _Z * _Z / (4 * count * count)) / shrink
    return Score(count, mean, least + width * max(0.0, centre - half), least + width * min(1.0, centre + half))
