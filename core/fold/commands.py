"""From commands to events: validate against the state a node has, and say what to propose. Only this file makes events.

Every function is pure: ids and times come in as arguments. A refusal here costs nothing; what passes is still only a
proposal, and the fold judges it again at its place in the log. Ids derive from the command id, so a command that is sent
twice proposes the same thing twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Any

from ..errors import Archived, NotFound
from ..events import schema
from ..events.payload import inline
from ..events.run_events import AlgorithmDecided, RunClosed, RunOpened
from ..model.status import ATTEMPT_FINAL, QUEUING
from .state import Attempt, Rollout, State


def rollout_id_of(command_id: str, index: int = 0) -> str:
    """`ro-` and the first 12 hex digits of SHA-1 over command id and index."""
    return "ro-" + sha1(f"{command_id}/{index}".encode()).hexdigest()[:12]


def run_id_of(command_id: str) -> str:
    """`run-` and the first 12 hex digits of SHA-1 over the command id."""
    return "run-" + sha1(f"{command_id}/run".encode()).hexdigest()[:12]


def attempt_id_of(command_id: str) -> str:
    """`at-` and the first 8 hex digits of SHA-1 over the command id."""
    return "at-" + sha1(f"{command_id}/attempt".encode()).hexdigest()[:8]


def resources_id_of(command_id: str) -> str:
    """`rs-` and the first 12 hex digits of SHA-1 over the command id."""
    return "rs-" + sha1(f"{command_id}/resources".encode()).hexdigest()[:12]


def find(state: State, rollout_id: str) -> Rollout:
    """The hot rollout. Raises `NotFound`, or `Archived` where it has to be restored first."""
    rollout = state.rollouts.get(rollout_id)
    if rollout is not None:
        return rollout
    if state.archived.get(rollout_id) is not None:
        raise Archived(rollout_id=rollout_id)
    raise NotFound.rollout(rollout_id)


def find_attempt(rollout: Rollout, attempt_id: str) -> Attempt:
    """The attempt by id or as "latest". Raises `NotFound`."""
    if not rollout.attempts:
        raise NotFound.attempts(rollout.rollout_id)
    if attempt_id == "latest":
        return rollout.attempts[-1]
    for attempt in reversed(rollout.attempts):
        if attempt.attempt_id == attempt_id:
            return attempt
    raise NotFound.attempt(attempt_id, rollout.rollout_id)


def open_log(window: int, archive_after: int, fold_version: int) -> schema.LogOpened:
    """The first record of a log."""
    return schema.LogOpened(fold_version=fold_version, window=window, archive_after=archive_after)


def enqueue(rollouts: Sequence[schema.NewRollout]) -> schema.RolloutsEnqueued:
    """Queue new rollouts, in order."""
    return schema.RolloutsEnqueued(rollouts=tuple(rollouts))


def start(rollout: schema.NewRollout, claim: schema.Claim) -> schema.RolloutStarted:
    """Create a rollout with its first attempt, past the queue."""
    return schema.RolloutStarted(rollout=rollout, claim=claim)


def claim(state: State, rollout_id: str, claimer: schema.Claim) -> schema.AttemptClaimed | None:
    """Claim a queued rollout; None where it is not claimable any more."""
    rollout = state.rollouts.get(rollout_id)
    if rollout is None or rollout_id not in state.queue:
        return None
    return schema.AttemptClaimed(
        rollout_id=rollout_id,
        generation=rollout.generation,
        sequence_id=len(rollout.attempts) + 1,
        claim=claimer,
    )


def start_attempt(state: State, rollout_id: str, claimer: schema.Claim) -> schema.AttemptStarted:
    """Open the next attempt, whatever the rollout's status. Raises `NotFound`, `Archived`."""
    rollout = find(state, rollout_id)
    return schema.AttemptStarted(
        rollout_id=rollout_id,
        generation=rollout.generation,
        sequence_id=len(rollout.attempts) + 1,
        claim=claimer,
    )


def return_claim(rollout: Rollout, attempt: Attempt) -> schema.ClaimReturned:
    """Give an unconfirmed claim back to the queue."""
    return schema.ClaimReturned(
        rollout_id=rollout.rollout_id, generation=attempt.generation, sequence_id=attempt.sequence_id
    )


def observe(
    rollout: Rollout, attempt: Attempt, edge: schema.Edge, beat_us: int | None
) -> schema.AttemptObserved | None:
    """The edge that a sign of life makes, or None where it changes nothing."""
    if attempt.status in ATTEMPT_FINAL or (attempt.status == "running" and attempt.confirmed):
        return None
    if attempt.status == "running" or (edge == "confirmed" and attempt.status == "preparing"):
        if attempt.confirmed:
            return None
        edge = "confirmed"
    elif attempt.status == "unresponsive":
        latest = attempt.sequence_id == len(rollout.attempts) and attempt.generation == rollout.generation
        if not latest or rollout.status not in QUEUING:
            return None
    return schema.AttemptObserved(
        rollout_id=rollout.rollout_id,
        generation=attempt.generation,
        sequence_id=attempt.sequence_id,
        edge=edge,
        beat_us=beat_us,
    )


def update_attempt(
    rollout: Rollout,
    attempt: Attempt,
    *,
    status: schema.AttemptStatus | None,
    worker_id: str | None,
    metadata: bytes | None,
    beat_us: int | None,
    watermark: int | None,
    reward: float | None = None,
    lag_ms: int,
) -> schema.AttemptUpdated:
    """Change fields of an attempt; None leaves a field alone."""
    return schema.AttemptUpdated(
        rollout_id=rollout.rollout_id,
        generation=attempt.generation,
        sequence_id=attempt.sequence_id,
        status=status,
        worker_id=worker_id,
        metadata=inline(metadata),
        beat_us=beat_us,
        watermark=watermark,
        reward=reward,
        lag_ms=lag_ms,
    )


def expire(
    rollout: Rollout,
    attempt: Attempt,
    kind: schema.ExpiryKind,
    *,
    beat_us: int | None,
    watermark: int | None,
    reward: float | None = None,
    lost_retries: int,
) -> schema.AttemptExpired:
    """End an open attempt for time or silence, naming what was assumed."""
    return schema.AttemptExpired(
        rollout_id=rollout.rollout_id,
        generation=attempt.generation,
        sequence_id=attempt.sequence_id,
        kind=kind,
        revivals=attempt.revivals,
        config_version=rollout.config_version,
        beat_us=beat_us,
        watermark=watermark,
        reward=reward,
        lost_retries=lost_retries,
    )


def requeue(rollout: Rollout) -> schema.RolloutRequeued:
    """End a back-off."""
    return schema.RolloutRequeued(
        rollout_id=rollout.rollout_id, generation=rollout.generation, sequence_id=len(rollout.attempts)
    )


def update_rollout(
    state: State,
    rollout_id: str,
    fields: tuple[str, ...],
    *,
    input: bytes = b"",
    mode: schema.Mode | None = None,
    resources_id: str | None = None,
    status: schema.RolloutStatus | None = None,
    config: schema.Config | None = None,
    metadata: bytes | None = None,
    watermark: int | None = None,
    reward: float | None = None,
) -> schema.RolloutUpdated:
    """Replace the fields named in `fields`. Raises `NotFound`, `Archived`."""
    rollout = find(state, rollout_id)
    return schema.RolloutUpdated(
        rollout_id=rollout_id,
        generation=rollout.generation,
        fields=fields,
        input=inline(input),
        mode=mode,
        resources_id=resources_id,
        status=status,
        config=config if config is not None else schema.Config(),
        metadata=inline(metadata),
        watermark=watermark,
        reward=reward,
    )


def restore(rollout_id: str, body: bytes) -> schema.RolloutRestored:
    """Bring an archived rollout back, as the cold index kept it."""
    return schema.RolloutRestored(rollout_id=rollout_id, body=body)


def publish_resources(
    resources_id: str, resources: bytes, expected_version: int | None = None
) -> schema.ResourcesPublished:
    """Publish new content under an id."""
    return schema.ResourcesPublished(
        resources_id=resources_id, resources=inline(resources), expected_version=expected_version
    )


def pass_time(state: State, elapsed_ms: int) -> schema.TimePassed:
    """Move the log's clock on by `elapsed_ms` > 0."""
    return schema.TimePassed(from_ms=state.time_ms, to_ms=state.time_ms + elapsed_ms)


def open_run(run_id: str, **fields: Any) -> RunOpened:
    """Say that a fit began; `fields` are the other ones of the event."""
    return RunOpened(run_id=run_id, **fields)


def close_run(run_id: str, **fields: Any) -> RunClosed:
    """Say how a fit ended and which resources were the best."""
    return RunClosed(run_id=run_id, **fields)


def decision(run_id: str, **fields: Any) -> AlgorithmDecided:
    """Say what an algorithm decided and what it had seen by then."""
    return AlgorithmDecided(run_id=run_id, **fields)
