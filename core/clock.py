"""The two clocks everything reads time from, so that tests can hold them."""

from __future__ import annotations

import time
from typing import Protocol

from .errors import InvalidInput

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """Both readings are float seconds; only ``monotonic`` may be used to measure a duration."""

    def time(self) -> float:
        """Wall clock: Unix seconds. May jump, also backwards."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...


class SystemClock:
    """The clock of the machine."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until a test moves it.

    Args:
        now: first wall clock reading, Unix seconds. ``monotonic`` starts at 0.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._wall = float(now)
        self._monotonic = 0.0

    def time(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass on both clocks; InvalidInput when negative."""
        if seconds < 0:
            raise InvalidInput(f"Time does not go back: advance({seconds})")
        self._wall += seconds
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator would; monotonic stays."""
        self._wall += seconds
