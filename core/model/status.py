"""The statuses of rollouts, attempts and workers, and the sets of them that decide what may happen next."""

from __future__ import annotations

from typing import Any, Literal, get_args

__all__ = [
    "ATTEMPT_EXPIRED",
    "ATTEMPT_FINAL",
    "ATTEMPT_REPORTED",
    "ATTEMPT_STATUSES",
    "FINISHED",
    "MODES",
    "QUEUING",
    "ROLLOUT_STATUSES",
    "RUNNING",
    "AttemptStatus",
    "RolloutMode",
    "RolloutStatus",
    "TaskInput",
    "WORKER_STATUSES",
    "WorkerStatus",
]

TaskInput = Any

RolloutStatus = Literal["queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing"]
AttemptStatus = Literal["preparing", "running", "failed", "succeeded", "unresponsive", "timeout"]
RolloutMode = Literal["train", "val", "test"]
WorkerStatus = Literal["idle", "busy", "unknown"]

ROLLOUT_STATUSES: frozenset[str] = frozenset(get_args(RolloutStatus))
ATTEMPT_STATUSES: frozenset[str] = frozenset(get_args(AttemptStatus))
WORKER_STATUSES: frozenset[str] = frozenset(get_args(WorkerStatus))
MODES: frozenset[str | None] = frozenset((None, *get_args(RolloutMode)))

QUEUING: frozenset[RolloutStatus] = frozenset(("queuing", "requeuing"))
"""Rollouts that are in the queue or wait for the end of a back-off."""
RUNNING: frozenset[Literal["preparing", "running"]] = frozenset(("preparing", "running"))
"""Rollouts that a worker has claimed, and attempts that are under way."""
FINISHED: frozenset[RolloutStatus] = frozenset(("failed", "succeeded", "cancelled"))
"""Rollouts that have their outcome."""
ATTEMPT_REPORTED: frozenset[AttemptStatus] = frozenset(("failed", "succeeded"))
"""Attempts whose worker reported the end."""
ATTEMPT_EXPIRED: frozenset[AttemptStatus] = frozenset(("timeout", "unresponsive"))
"""Attempts that the store ended."""
ATTEMPT_FINAL: frozenset[AttemptStatus] = frozenset(("failed", "succeeded", "timeout"))
"""Attempts whose status never changes again; one that is `unresponsive` may come back."""
