"""InMemoryLightningStore: the same store on a log in memory; it is gone when the process ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.clock import Clock
from ..core.errors import InvalidInput
from ..core.memory_log import MemoryLog
from ..core.spans import Span
from ..core.store_terms import LightningStoreCapabilities
from .settings import StoreSettings
from .store import EventLogStore


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
    if isinstance(eviction, float) and not 0 < eviction <= 1:
        raise InvalidInput(f"eviction_memory_threshold is a ratio in (0, 1] or a number of bytes, not {eviction}")
    if isinstance(eviction, int) and eviction < 1:
        raise InvalidInput("eviction_memory_threshold must be at least one byte")
    if isinstance(safe, float) and not 0 <= safe <= 1:
        raise InvalidInput(f"safe_memory_threshold is a ratio in [0, 1] or a number of bytes, not {safe}")
    if eviction is not None and safe is not None and type(eviction) is type(safe) and not 0 <= safe < eviction:
        raise InvalidInput("safe_memory_threshold must be smaller than eviction_memory_threshold")
