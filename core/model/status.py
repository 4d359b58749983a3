"""The words a rollout, an attempt and a worker can be described with."""

from typing import Any, Literal

__all__ = [
    "ATTEMPT_ENDED",
    "FINISHED",
    "QUEUING",
    "RUNNING",
    "AttemptStatus",
    "RolloutMode",
    "RolloutStatus",
    "TaskInput",
    "WorkerStatus",
]

TaskInput = Any

RolloutStatus = Literal["queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing"]
AttemptStatus = Literal["preparing", "running", "failed", "succeeded", "unresponsive", "timeout"]
RolloutMode = Literal["train", "val", "test"]
WorkerStatus = Literal["idle", "busy", "unknown"]

# Rollouts: in the queue; claimed by a worker; over.
QUEUING: frozenset[str] = frozenset(("queuing", "requeuing"))
RUNNING: frozenset[str] = frozenset(("preparing", "running"))
FINISHED: frozenset[str] = frozenset(("failed", "succeeded", "cancelled"))

# Attempts whose worker reported an end; timeout and unresponsive are the store's judgement.
ATTEMPT_ENDED: frozenset[str] = frozenset(("failed", "succeeded"))
