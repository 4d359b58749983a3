"""The words of the store interface: unset parameters, capabilities, statistics, status groups."""

from __future__ import annotations

from typing import Literal, TypedDict

from .rollout import Rollout
from .status import FINISHED, QUEUING, RUNNING

__all__ = [
    "UNSET",
    "FilterLogic",
    "LightningStoreCapabilities",
    "LightningStoreStatistics",
    "SortOrder",
    "Unset",
    "is_finished",
    "is_queuing",
    "is_running",
]

SortOrder = Literal["asc", "desc"]
FilterLogic = Literal["and", "or"]


class _UnsetType:
    """The type of :data:`UNSET`, of which there is one instance, also after pickling."""

    _instance: _UnsetType | None = None

    def __new__(cls) -> _UnsetType:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "UNSET"

    def __reduce__(self) -> str:
        return "UNSET"


UNSET = _UnsetType()
"""Default of a parameter that leaves its field unchanged; None would set the field to null."""

Unset = _UnsetType


class LightningStoreCapabilities(TypedDict, total=False):
    """What a store can do beyond the methods; a missing key means no."""

    thread_safe: bool
    """Methods may be called from several threads."""
    async_safe: bool
    """Methods may be called from several tasks of one event loop."""
    zero_copy: bool
    """Handed to another thread or process, it still refers to the same data."""
    otlp_traces: bool
    """Takes spans over OTLP/HTTP at :meth:`LightningStore.otlp_traces_endpoint`."""
    push_dequeue: bool
    """``dequeue_rollout(wait_seconds=...)`` waits for work instead of returning at once."""
    liveness: bool
    """``update_worker(attempts=...)`` counts as a sign of life of those attempts."""
    run_claims: bool
    """``dequeue_rollout(run_id=...)`` claims rollouts of that run only."""
    subscribe: bool
    """:meth:`LightningStore.subscribe` works."""


class LightningStoreStatistics(TypedDict, total=False):
    """Counts of what a store holds; ``uptime`` is seconds since it was opened."""

    name: str
    total_rollouts: int
    total_attempts: int
    total_spans: int
    total_resources: int
    total_workers: int
    uptime: float
    total_span_bytes: int
    eviction_threshold_bytes: int
    safe_threshold_bytes: int
    memory_capacity_bytes: int


def is_queuing(rollout: Rollout) -> bool:
    """In the queue: queuing or requeuing."""
    return rollout.status in QUEUING


def is_running(rollout: Rollout) -> bool:
    """Claimed by a worker: preparing or running."""
    return rollout.status in RUNNING


def is_finished(rollout: Rollout) -> bool:
    """Over: failed, succeeded or cancelled."""
    return rollout.status in FINISHED
