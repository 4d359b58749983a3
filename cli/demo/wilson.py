"""Means of rewards that are 0 or 1, with the interval that says how little a few answers prove."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959963984540054
"""Standard normal quantile of 0.975: a 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """Mean reward of `count` answers; `low` and `high` bound the true mean with 95 % confidence (Wilson)."""

    count: int
    mean: float
    low: float
    high: float


def estimate(rewards: Sequence[float]) -> Estimate:
    """The estimate from rewards of 0.0 or 1.0; without any, nothing is known: the mean is NaN and the interval 0 to 1."""
    n = len(rewards)
    if n == 0:
        return Estimate(0, math.nan, 0.0, 1.0)
    p = sum(rewards) / n
    shrink = 1 + _Z * _Z / n
    centre = (p + _Z * _Z / (2 * n)) / shrink
    half = _Z * math.sqrt(p * (1 - p) / n + _Z * _Z / (4 * n * n)) / shrink
    return Estimate(n, p, max(0.0, centre - half), min(1.0, centre + half))
