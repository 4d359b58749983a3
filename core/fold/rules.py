"""One rule per event type: check what the proposal assumes, then let the transitions happen, or say why not.

A rule returns the reason of a refusal, and then has changed nothing, or "" and has applied the event. It never raises,
reads no clock and draws no random number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..events import fact, schema
from ..events.payload import outline
from ..model.status import ATTEMPT_FINAL, FINISHED, QUEUING, RUNNING
from .deduplication import Reason
from .state import FOLD_VERSION, Attempt, ResourcesVersion, Rollout, State, hash_of, unpack
from .state_machine import (
    Facts,
    create_rollout,
    governs,
    ids_of,
    make_claimable,
    open_attempt,
    propagate,
    release_worker,
    reopen,
    set_attempt_status,
    set_rollout_status,
    sync_worker,
)

MAX_TIME_STEP_MS = 10_000
"""One turn of a timekeeper's loop counts as two ticks of 5 s at most, however long the process was frozen."""


def _find(state: State, rollout_id: str) -> Rollout | Reason:
    rollout = state.rollouts.get(rollout_id)
    if rollout is not None:
        return rollout
    return "archived" if state.archived.get(rollout_id) is not None else "unknown_rollout"


def _fenced(state: State, event: Any) -> tuple[Rollout, Attempt] | Reason:
    """The rollout and attempt that the event's fence names, or why there is no such attempt."""
    rollout = state.rollouts.get(event.rollout_id)
    if rollout is None:
        return "archived" if state.archived.get(event.rollout_id) is not None else "unknown_rollout"
    number: int = event.sequence_id
    if not 1 <= number <= len(rollout.attempts):
        return "unknown_attempt"
    attempt = rollout.attempts[number - 1]
    return (rollout, attempt) if attempt.generation == event.generation else "stale_generation"


def log_opened(state: State, event: schema.LogOpened, time_us: int, facts: Facts) -> Reason:
    """Only the first record of a log may set it up."""
    if state.position != 0:
        return "already_open"
    if event.window < 1:
        return "malformed"
    if event.fold_version > FOLD_VERSION:
        return _halt(state, event.fold_version)
    state.window, state.archive_after, state.fold_version = event.window, event.archive_after, event.fold_version
    facts.append(fact.LogOpened())
    return ""


def fold_activated(state: State, event: schema.FoldActivated, time_us: int, facts: Facts) -> Reason:
    """Semantics only go forward."""
    if event.version <= state.fold_version:
        return "already_active"
    if event.version > FOLD_VERSION:
        return _halt(state, event.version)
    state.fold_version = event.version
    facts.append(fact.FoldActivated(version=event.version))
    return ""


def _halt(state: State, version: int) -> Reason:
    state.halted = f"the log uses fold version {version}, this release knows {FOLD_VERSION}; upgrade it"
    return "halted"


def rollouts_enqueued(state: State, event: schema.RolloutsEnqueued, time_us: int, facts: Facts) -> Reason:
    """All of them or none; every id must be new."""
    if not event.rollouts:
        return "malformed"
    ids: set[str] = set()
    for new in event.rollouts:
        if new.rollout_id in ids or _exists(state, new.rollout_id):
            return "exists"
        ids.add(new.rollout_id)
    for new in event.rollouts:
        make_claimable(state, create_rollout(state, new, time_us, facts), "queuing", facts)
    return ""


def _exists(state: State, rollout_id: str) -> bool:
    return rollout_id in state.rollouts or state.archived.get(rollout_id) is not None


def rollout_started(state: State, event: schema.RolloutStarted, time_us: int, facts: Facts) -> Reason:
    """Create and claim in one record."""
    if _exists(state, event.rollout.rollout_id):
        return "exists"
    open_attempt(state, create_rollout(state, event.rollout, time_us, facts), event.claim, time_us, facts)
    return ""


def attempt_claimed(state: State, event: schema.AttemptClaimed, time_us: int, facts: Facts) -> Reason:
    """The first valid claim of a claimable rollout wins."""
    rollout = _find(state, event.rollout_id)
    if isinstance(rollout, str):
        return rollout
    if event.rollout_id not in state.queue:
        return "not_claimable"
    if event.generation != rollout.generation:
        return "stale_generation"
    if event.sequence_id != len(rollout.attempts) + 1:
        return "stale_attempt"
    open_attempt(state, rollout, event.claim, time_us, facts, dequeued=True)
    return ""


def attempt_started(state: State, event: schema.AttemptStarted, time_us: int, facts: Facts) -> Reason:
    """A claim in any state; where the rollout is busy or finished it begins a new generation."""
    rollout = _find(state, event.rollout_id)
    if isinstance(rollout, str):
        return rollout
    if event.generation != rollout.generation:
        return "stale_generation"
    if event.sequence_id != len(rollout.attempts) + 1:
        return "stale_attempt"
    if rollout.status not in QUEUING:
        reopen(rollout, facts)
    open_attempt(state, rollout, event.claim, time_us, facts)
    return ""


def claim_returned(state: State, event: schema.ClaimReturned, time_us: int, facts: Facts) -> Reason:
    """Only a claim that still governs its rollout and was never confirmed."""
    found = _fenced(state, event)
    if isinstance(found, str):
        return found
    rollout, attempt = found
    if attempt.confirmed or attempt.status != "preparing":
        return "confirmed"
    if not governs(rollout, attempt):
        return "superseded"
    attempt.counted = False
    set_attempt_status(state, rollout, attempt, "unresponsive", time_us, facts)
    make_claimable(state, rollout, "requeuing", facts)
    return ""


def attempt_observed(state: State, event: schema.AttemptObserved, time_us: int, facts: Facts) -> Reason:
    """A sign of life: preparing runs, unresponsive comes back while nobody else has the rollout."""
    found = _fenced(state, event)
    if isinstance(found, str):
        return found
    rollout, attempt = found
    if attempt.status in ATTEMPT_FINAL:
        return "late"
    if event.edge == "confirmed" and attempt.status != "unresponsive":
        if attempt.confirmed:
            return "already_known"
        attempt.confirmed = True
        facts.append(fact.AttemptConfirmed(*ids_of(rollout, attempt)))
        return ""
    if attempt.status == "running":
        return "already_known"
    if attempt.status == "unresponsive":
        if not governs(rollout, attempt):
            return "superseded"
        attempt.revivals += 1
        attempt.counted = True
    if event.beat_us is not None:
        attempt.beat_us = event.beat_us
    set_attempt_status(state, rollout, attempt, "running", time_us, facts)
    propagate(state, rollout, attempt, time_us, facts)
    return ""


def attempt_updated(state: State, event: schema.AttemptUpdated, time_us: int, facts: Facts) -> Reason:
    """Fields always, a status only while the attempt is not over: the first end wins."""
    found = _fenced(state, event)
    if isinstance(found, str):
        return found
    rollout, attempt = found
    if event.status is not None and attempt.status in ATTEMPT_FINAL and event.status != attempt.status:
        return "late"
    if event.status in RUNNING and attempt.status == "unresponsive" and not governs(rollout, attempt):
        return "late"
    metadata = outline(event.metadata)
    if metadata is not None:
        attempt.metadata = metadata
    if event.beat_us is not None:
        attempt.beat_us = event.beat_us
    if event.worker_id is not None:
        if event.worker_id != attempt.worker_id:
            release_worker(state, attempt, time_us)
        attempt.worker_id = event.worker_id
    attempt.confirmed = True
    if event.status is None or event.status == attempt.status:
        facts.append(fact.AttemptUpdated(*ids_of(rollout, attempt)))
        if event.worker_id is not None:
            sync_worker(state, rollout, attempt, time_us)
        return ""
    attempt.watermark = event.watermark
    if governs(rollout, attempt):
        rollout.reward = event.reward
        if attempt.status == "unresponsive":
            attempt.revivals += 1
            attempt.counted = True
    set_attempt_status(state, rollout, attempt, event.status, time_us, facts)
    propagate(state, rollout, attempt, time_us, facts, event.lag_ms)
    return ""


def attempt_expired(state: State, event: schema.AttemptExpired, time_us: int, facts: Facts) -> Reason:
    """Only what the timekeeper saw may expire; the log's clock is checked again."""
    found = _fenced(state, event)
    if isinstance(found, str):
        return found
    rollout, attempt = found
    if attempt.status not in RUNNING:
        return "not_open"
    if event.revivals != attempt.revivals or event.config_version != rollout.config_version:
        return "changed"
    if event.kind != "worker_lost":
        config = rollout.config
        limit = config.timeout_ms if event.kind == "timeout" else config.unresponsive_ms
        if limit is None:
            return "changed"
        if state.time_ms - attempt.started_ms < limit:
            return "too_early"
    lost = event.kind == "worker_lost" and rollout.lost < event.lost_retries
    if event.beat_us is not None:
        attempt.beat_us = event.beat_us
    attempt.watermark = event.watermark
    if governs(rollout, attempt):
        rollout.reward = event.reward
    status: schema.AttemptStatus = "timeout" if event.kind == "timeout" else "unresponsive"
    set_attempt_status(state, rollout, attempt, status, time_us, facts)
    propagate(state, rollout, attempt, time_us, facts, 0, lost)
    return ""


def rollout_requeued(state: State, event: schema.RolloutRequeued, time_us: int, facts: Facts) -> Reason:
    """The end of a back-off, not before it is due by the log's clock."""
    rollout = _find(state, event.rollout_id)
    if isinstance(rollout, str):
        return rollout
    if rollout.due_ms is None or rollout.generation != event.generation or event.sequence_id != len(rollout.attempts):
        return "not_backing_off"
    if state.time_ms < rollout.due_ms:
        return "too_early"
    make_claimable(state, rollout, "requeuing", facts)
    return ""


def rollout_updated(state: State, event: schema.RolloutUpdated, time_us: int, facts: Facts) -> Reason:
    """Replace the named fields, then the status."""
    rollout = _find(state, event.rollout_id)
    if isinstance(rollout, str):
        return rollout
    if event.generation != rollout.generation:
        return "stale_generation"
    fields = event.fields
    if "status" in fields and event.status is None:
        return "malformed"
    for name in ("mode", "resources_id"):
        if name in fields:
            setattr(rollout, name, getattr(event, name))
    if "input" in fields:
        rollout.input = bytes(event.input)
    if "metadata" in fields:
        rollout.metadata = outline(event.metadata)
    if "resources_id" in fields:
        versions = state.resources.get(rollout.resources_id) if rollout.resources_id is not None else None
        rollout.resources_version = len(versions) if versions else None
    if "config" in fields:
        rollout.config = event.config
        rollout.config_version += 1
    facts.append(fact.RolloutUpdated(*ids_of(rollout), fields=fields))
    if event.status is not None and "status" in fields:
        if event.status in FINISHED:
            rollout.reward = event.reward
        set_rollout_status(state, rollout, event.status, time_us, facts)
    return ""


def rollout_restored(state: State, event: schema.RolloutRestored, time_us: int, facts: Facts) -> Reason:
    """Bring back exactly what was archived."""
    expected = state.archived.get(event.rollout_id)
    if expected is None:
        return "not_archived"
    if hash_of(event.body) != expected:
        return "altered"
    rollout = unpack(event.body)
    if rollout is None or rollout.rollout_id != event.rollout_id or rollout.status not in FINISHED:
        return "altered"
    state.archived.take(event.rollout_id)
    rollout.finished_at = state.position
    state.rollouts[event.rollout_id] = rollout
    state.leaving.append((state.position, event.rollout_id))
    facts.append(fact.RolloutRestored(*ids_of(rollout)))
    return ""


def resources_published(state: State, event: schema.ResourcesPublished, time_us: int, facts: Facts) -> Reason:
    """A new version of an id, which becomes the latest resources."""
    versions = state.resources.setdefault(event.resources_id, [])
    if event.expected_version is not None and event.expected_version != len(versions):
        if not versions:
            del state.resources[event.resources_id]
        return "version_conflict"
    created = versions[0].created_us if versions else time_us
    versions.append(
        ResourcesVersion(event.resources_id, len(versions) + 1, created, max(time_us, created), bytes(event.resources))
    )
    state.latest_resources = event.resources_id
    facts.append(fact.ResourcesPublished(resources_id=event.resources_id, version=len(versions)))
    return ""


def time_passed(state: State, event: schema.TimePassed, time_us: int, facts: Facts) -> Reason:
    """The clock moves from where it is, forward, by a bounded step."""
    if event.from_ms != state.time_ms:
        return "clock_moved"
    if not 0 < event.to_ms - event.from_ms <= MAX_TIME_STEP_MS:
        return "malformed"
    state.time_ms = event.to_ms
    facts.append(fact.TimePassed(to_ms=event.to_ms))
    return ""


RULES: dict[type[msgspec.Struct], Callable[[State, Any, int, Facts], Reason]] = {
    schema.LogOpened: log_opened,
    schema.FoldActivated: fold_activated,
    schema.RolloutsEnqueued: rollouts_enqueued,
    schema.RolloutStarted: rollout_started,
    schema.AttemptClaimed: attempt_claimed,
    schema.AttemptStarted: attempt_started,
    schema.ClaimReturned: claim_returned,
    schema.AttemptObserved: attempt_observed,
    schema.AttemptUpdated: attempt_updated,
    schema.AttemptExpired: attempt_expired,
    schema.RolloutRequeued: rollout_requeued,
    schema.RolloutUpdated: rollout_updated,
    schema.RolloutRestored: rollout_restored,
    schema.ResourcesPublished: resources_published,
    schema.TimePassed: time_passed,
}
"""The rule of each event type."""
