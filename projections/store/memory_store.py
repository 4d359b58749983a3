"""InMemoryLightningStore: the same store on a log in memory; it is gone when the process ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ...core.clock import Clock
from ...core.errors import InvalidInput
from ...core.log.local.memory import MemoryLog
from ...core.model.scalars import plain_scalar
from ...core.model.span import Span
from ...core.model.store_interface import LightningStoreCapabilities
from ..replica.settings import StoreSettings
from .store import EventLogStore

DEFAULT_EVICTION = 0.7
"""What the older API evicted at, as a ratio of the memory."""


class InMemoryLightningStore(EventLogStore):
    """An `EventLogStore` on a `MemoryLog`.

    `thread_safe` is what `capabilities` says; the store is safe either way. The thresholds are checked as the older API
    checked them and otherwise unused: nothing is ever evicted. `scan_debounce_seconds` too: time is an event here.
    """

    def __init__(
        self,
        *,
        thread_safe: bool = False,
        eviction_memory_threshold: float | int | None = None,
        safe_memory_threshold: float | int | None = None,
        span_size_estimator: Callable[[Span], int] | None = None,
        tracker: Any = None,
        scan_debounce_seconds: float = 10.0,
        settings: StoreSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        _check_thresholds(eviction_memory_threshold, safe_memory_threshold)
        self._thread_safe = thread_safe
        super().__init__(MemoryLog(), settings=settings, clock=clock)

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        capabilities = super().capabilities
        capabilities["thread_safe"] = self._thread_safe
        return capabilities


def _check_thresholds(eviction: float | int | None, safe: float | int | None) -> None:
    limit_bytes = _bytes(DEFAULT_EVICTION if eviction is None else eviction, "eviction_memory_threshold")
    if limit_bytes < 1:
        raise InvalidInput("eviction_memory_threshold must be at least one byte")
    if safe is not None and not 0 <= _bytes(safe, "safe_memory_threshold") < limit_bytes:
        raise InvalidInput("safe_memory_threshold must be smaller than eviction_memory_threshold")


def _bytes(threshold: object, name: str) -> int:
    """A ratio (a float) of this machine's memory, or a number of bytes (an int), in bytes."""
    threshold = plain_scalar(threshold)
    if isinstance(threshold, int):
        return threshold
    if not isinstance(threshold, float) or not 0 <= threshold <= 1:
        raise InvalidInput(f"{name} is a ratio up to 1 (a float) or a number of bytes (an int), not {threshold!r:.100}")
    return int(threshold * _memory_bytes())


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or one that does not say
        return 8 * 2**30
