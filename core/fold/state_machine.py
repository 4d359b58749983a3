"""The state machine of rollouts, attempts and workers: the only functions that change them.

They are called by the rules (rules.py) after the preconditions held, take all times from the event, and report what
they did as facts (core/events/fact.py), which are numbered within their record.
"""

from __future__ import annotations

from hashlib import blake2b

from ..events import fact
from ..events.payload import outline
from ..events.run_events import run_of
from ..events.schema import AttemptStatus, Claim, NewRollout, RolloutStatus
from ..model.status import ATTEMPT_FINAL, ATTEMPT_REPORTED, FINISHED, QUEUING, RUNNING
from .state import Attempt, Rollout, State, Worker

LAG_LIMIT_MS = 10_000
"""Two ticks of a timekeeper: no claim starts further ahead of the log's clock than it can be behind."""

DIGEST_BYTES = 8

Facts = list[fact.FactData]


def lagged_ms(state: State, lag_ms: int) -> int:
    """The log's clock plus what its writer says has passed since it was last moved."""
    return state.time_ms + (lag_ms if lag_ms < LAG_LIMIT_MS else LAG_LIMIT_MS)


_OF_ROLLOUT: dict[str, type[fact.FactData]] = {"preparing": fact.RolloutPreparing, "running": fact.RolloutRunning}


def ids_of(rollout: Rollout, attempt: Attempt | None = None) -> tuple[str, int, str | None]:
    """What a fact says first: the rollout and the attempt, which is the latest one where none is given."""
    if attempt is None:
        attempt = rollout.attempts[-1] if rollout.attempts else None
    return (rollout.rollout_id, 0, None) if attempt is None else (rollout.rollout_id, attempt.sequence_id, attempt.attempt_id)


def create_rollout(state: State, new: NewRollout, time_us: int, facts: Facts) -> Rollout:
    """Add a rollout in status queuing, bound to the latest resources if it names none; not in the queue yet."""
    state.created += 1
    resources_id = new.resources_id if new.resources_id is not None else state.latest_resources
    versions = state.resources.get(resources_id) if resources_id is not None else None
    rollout = Rollout(
        rollout_id=new.rollout_id,
        number=state.created,
        input=bytes(new.input),
        created_us=time_us,
        mode=new.mode,
        resources_id=resources_id,
        resources_version=len(versions) if versions else None,
        config=new.config,
        metadata=outline(new.metadata),
        attempts=[],
    )
    state.rollouts[new.rollout_id] = rollout
    facts.append(fact.RolloutEnqueued(new.rollout_id))
    return rollout


def make_claimable(state: State, rollout: Rollout, status: RolloutStatus, facts: Facts) -> None:
    """Put a rollout at the queue's tail, unless it is in the queue already."""
    rollout.status = status
    rollout.due_ms = None
    if rollout.rollout_id not in state.queue:
        state.queue[rollout.rollout_id] = None
        facts.append(fact.RolloutClaimable(rollout.rollout_id, len(rollout.attempts) + 1, status=status))


def open_attempt(
    state: State, rollout: Rollout, claim: Claim, time_us: int, facts: Facts, dequeued: bool = False
) -> Attempt:
    """Add the next attempt in status preparing and take the rollout out of the queue, where it was if `dequeued`."""
    attempt = Attempt(
        attempt_id=claim.attempt_id,
        sequence_id=len(rollout.attempts) + 1,
        generation=rollout.generation,
        started_us=max(time_us, rollout.created_us),
        started_ms=lagged_ms(state, claim.lag_ms),
        worker_id=claim.worker_id,
        incarnation=claim.incarnation,
        confirmed=not claim.confirm,
    )
    rollout.attempts.append(attempt)
    rollout.reward = None
    rollout.status = "preparing"
    rollout.due_ms = None
    state.queue.pop(rollout.rollout_id, None)
    facts.append(
        fact.AttemptClaimed(rollout.rollout_id, attempt.sequence_id, attempt.attempt_id, worker_id=claim.worker_id)
    )
    if claim.worker_id:
        worker = _worker(state, claim.worker_id)
        if dequeued:
            worker.dequeue_us = time_us
        _occupy(state, worker, rollout, attempt, time_us)
    return attempt


def _worker(state: State, worker_id: str) -> Worker:
    worker = state.workers.get(worker_id)
    if worker is None:
        worker = state.workers[worker_id] = Worker(worker_id)
    return worker


def _occupy(state: State, worker: Worker, rollout: Rollout, attempt: Attempt, time_us: int) -> None:
    if worker.status != "busy":
        worker.busy_us = time_us
    worker.status = "busy"
    worker.rollout_id, worker.attempt_id = rollout.rollout_id, attempt.attempt_id
    worker.changed_at = state.position


def sync_worker(state: State, rollout: Rollout, attempt: Attempt, time_us: int) -> None:
    """Let the attempt's worker follow the attempt's status; a worker that is busy with another one is left alone."""
    if not attempt.worker_id:
        return
    worker = _worker(state, attempt.worker_id)
    if attempt.status in RUNNING:
        _occupy(state, worker, rollout, attempt, time_us)
        return
    if worker.attempt_id not in (None, attempt.attempt_id):
        return
    status = "idle" if attempt.status in ATTEMPT_REPORTED else "unknown"
    if worker.status != status:
        worker.idle_us = time_us
    worker.status = status
    worker.rollout_id = worker.attempt_id = None
    worker.changed_at = state.position


def release_worker(state: State, attempt: Attempt, time_us: int) -> None:
    """The attempt goes to another worker: the one that had it is not busy with it any more."""
    worker = state.workers.get(attempt.worker_id) if attempt.worker_id else None
    if worker is None or worker.status != "busy" or worker.attempt_id != attempt.attempt_id:
        return
    worker.status = "unknown"
    worker.idle_us = time_us
    worker.rollout_id = worker.attempt_id = None
    worker.changed_at = state.position


def governs(rollout: Rollout, attempt: Attempt) -> bool:
    """Say whether the attempt may still change its rollout: the latest one, of this generation, no outcome yet."""
    return (
        attempt.sequence_id == len(rollout.attempts)
        and attempt.generation == rollout.generation
        and rollout.status not in FINISHED
    )


def set_attempt_status(
    state: State, rollout: Rollout, attempt: Attempt, status: AttemptStatus, time_us: int, facts: Facts
) -> None:
    """Change an attempt that is not over yet; its end is never before its start."""
    attempt.status = status
    attempt.confirmed = True
    if status in ATTEMPT_REPORTED:
        attempt.ended_us = max(time_us, attempt.started_us)
    facts.append(fact.OF_ATTEMPT[status](rollout.rollout_id, attempt.sequence_id, attempt.attempt_id))
    sync_worker(state, rollout, attempt, time_us)


def propagate(
    state: State, rollout: Rollout, attempt: Attempt, time_us: int, facts: Facts, lag_ms: int = 0, lost: bool = False
) -> None:
    """Let the rollout follow its attempt, where the attempt governs it; else a final status is a late result."""
    status = attempt.status
    if not governs(rollout, attempt):
        if status in ATTEMPT_FINAL:
            facts.append(fact.AttemptLate(*ids_of(rollout, attempt), status=status))
    elif status in RUNNING:
        if rollout.status != status:
            rollout.status = status
            rollout.due_ms = None
            state.queue.pop(rollout.rollout_id, None)
            facts.append(_OF_ROLLOUT[status](rollout.rollout_id, attempt.sequence_id, attempt.attempt_id))
    elif status == "succeeded":
        finish(state, rollout, "succeeded", time_us, facts)
    elif lost:
        rollout.lost += 1
        attempt.counted = False
        make_claimable(state, rollout, "requeuing", facts)
    elif status in rollout.config.retry_condition and tries(rollout) < rollout.config.max_attempts:
        requeue(state, rollout, lag_ms, facts)
    else:
        finish(state, rollout, "failed", time_us, facts)


def tries(rollout: Rollout) -> int:
    """How many of `max_attempts` this generation has used."""
    return sum(1 for attempt in rollout.attempts if attempt.counted and attempt.generation == rollout.generation)


def requeue(state: State, rollout: Rollout, lag_ms: int, facts: Facts) -> None:
    """Queue the next try, after the back-off if there is one."""
    if rollout.config.backoff_ms:
        rollout.status = "requeuing"
        state.queue.pop(rollout.rollout_id, None)
        rollout.due_ms = lagged_ms(state, lag_ms) + rollout.config.backoff_ms
        facts.append(fact.RolloutBackoff(*ids_of(rollout), due_ms=rollout.due_ms))
    else:
        make_claimable(state, rollout, "requeuing", facts)


def finish(state: State, rollout: Rollout, status: RolloutStatus, time_us: int, facts: Facts) -> None:
    """Give the rollout its one outcome of this generation."""
    started = rollout.attempts[-1].started_us if rollout.attempts else rollout.created_us
    position = state.position
    rollout.status = status
    rollout.ended_us = time_us if time_us > started else started
    rollout.finished_at = position
    rollout.due_ms = None
    state.queue.pop(rollout.rollout_id, None)
    state.leaving.append((position, rollout.rollout_id))
    facts.append(completed(rollout))


def completed(rollout: Rollout) -> fact.RolloutCompleted:
    """The fact that a rollout has its outcome."""
    last = rollout.attempts[-1] if rollout.attempts else None
    ended_us = rollout.ended_us or 0
    return fact.RolloutCompleted(
        *ids_of(rollout, last),
        status=rollout.status,
        run_id=run_of(rollout.metadata),
        task_digest=blake2b(rollout.input, digest_size=DIGEST_BYTES).hexdigest(),
        resources_id=rollout.resources_id or None,
        resources_version=rollout.resources_version,
        reward=rollout.reward,
        worker_id=last.worker_id if last is not None else None,
        seconds=(ended_us - last.started_us) / 1_000_000 if last is not None else None,
        generation=rollout.generation,
    )


def reopen(rollout: Rollout, facts: Facts) -> None:
    """Begin a new generation: no outcome, a fresh budget of tries, and what runs cannot touch it any more."""
    rollout.generation += 1
    rollout.ended_us = None
    rollout.finished_at = -1
    rollout.lost = 0
    rollout.due_ms = None
    facts.append(fact.RolloutReopened(*ids_of(rollout), generation=rollout.generation))


def set_rollout_status(state: State, rollout: Rollout, status: RolloutStatus, time_us: int, facts: Facts) -> None:
    """Apply a status that somebody asked for outright."""
    was_finished = rollout.status in FINISHED
    if status == rollout.status and not (status in QUEUING and rollout.due_ms is not None):
        return
    if status in FINISHED:
        if was_finished:
            reopen(rollout, facts)
        finish(state, rollout, status, time_us, facts)
    elif status in QUEUING:
        if rollout.status not in QUEUING:
            reopen(rollout, facts)
        rollout.status = status
        make_claimable(state, rollout, status, facts)
    else:
        if was_finished:
            reopen(rollout, facts)
        rollout.status = status
        rollout.due_ms = None
        state.queue.pop(rollout.rollout_id, None)
        facts.append(_OF_ROLLOUT[status](*ids_of(rollout)))
