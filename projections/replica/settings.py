"""The settings of a store: what may be chosen when it is opened, with the values that suit one machine."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import InvalidInput
from ...core.fold.state import DEFAULT_ARCHIVE_AFTER, DEFAULT_WINDOW
from ...core.model.scalars import plain_scalar


@dataclass(frozen=True)
class StoreSettings:
    """How a store treats silence, size and history.

    `worker_lost_seconds`: a worker that sent heartbeats and then none for this long is lost, its attempts unresponsive.
    `lost_worker_retries`: how often the rollout of a lost worker is queued again, whatever its `RolloutConfig` says.
    `claim_confirm_seconds`: a remote claim without any sign of life for this long goes back to the queue.
    `max_payload_mb`: larger inputs, resources and spans are refused. `snapshot_every`: control records between two
    snapshots. `window`, `archive_after`: written into a new log, fixed from then on (core.events.LogOpened);
    `archive_after` is 2 at least, so that what was brought back stays for the change it was brought back for.
    Raises `InvalidInput`.
    """

    worker_lost_seconds: float = 10.0
    lost_worker_retries: int = 3
    claim_confirm_seconds: float = 10.0
    max_payload_mb: float = 64.0
    snapshot_every: int = 200_000
    window: int = DEFAULT_WINDOW
    archive_after: int = DEFAULT_ARCHIVE_AFTER

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, plain_scalar(value))
        for name in ("worker_lost_seconds", "claim_confirm_seconds", "max_payload_mb"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value > 0:
                raise InvalidInput(f"{name} is {value!r}; it takes a number above 0")
        for name, least in (("lost_worker_retries", 0), ("snapshot_every", 1), ("window", 1), ("archive_after", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value < 2**31:
                raise InvalidInput(f"{name} is {value!r}; it takes a whole number from {least} on, below 2**31")
