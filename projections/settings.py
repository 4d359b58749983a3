"""The settings of a store: what may be chosen when it is opened, with the values that suit one machine."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.state import DEFAULT_ARCHIVE_AFTER, DEFAULT_WINDOW


@dataclass(frozen=True)
class StoreSettings:
    """How a store treats silence, size and history.

    `worker_lost_seconds`: a worker that sent heartbeats and then none for this long is lost, its attempts unresponsive.
    `lost_worker_retries`: how often the rollout of a lost worker is queued again, whatever its `RolloutConfig` says.
    `claim_confirm_seconds`: a remote claim without any sign of life for this long goes back to the queue.
    `max_payload_mb`: larger inputs, resources and spans are refused. `snapshot_every`: control records between two
    snapshots. `window`, `archive_after`: written into a new log, fixed from then on (core.events.LogOpened).
    """

    worker_lost_seconds: float = 10.0
    lost_worker_retries: int = 3
    claim_confirm_seconds: float = 10.0
    max_payload_mb: float = 64.0
    snapshot_every: int = 200_000
    window: int = DEFAULT_WINDOW
    archive_after: int = DEFAULT_ARCHIVE_AFTER
