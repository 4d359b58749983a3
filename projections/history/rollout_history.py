"""Rollouts read from the log alone: their states at its end, and the history of one with verdicts, facts and spans.

Reading begins with the newest snapshot where there is one. Rollouts that were archived before it are read from the index
beside the log, whose bytes count only where the hash in the state matches. Where anything is missing, everything is folded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import InvalidInput, NotFound
from ...core.events import codec
from ...core.events.codec import Undecodable, UnknownEvent, decode, type_of
from ...core.events.fact import AttemptLate
from ...core.events.schema import AnyEvent, Claim, Proposal, RolloutsEnqueued, RolloutStarted
from ...core.fold.apply import Outcome
from ...core.fold.state import Attempt, Rollout, State, hash_of, unpack
from ...core.log.interface import Log
from ...core.model.rollout import Fact
from ...core.model.scalars import mapping
from ...core.model.semconv import AGL_EXCEPTION, AGL_OUTPUT
from ...core.model.span import Span
from ...core.spans.rewards import attempt_spans, find_final_reward, get_reward_value, get_rewards_from_span
from ..archive.index import read_bodies
from ..facts.derived_topic import batch_of, facts_of
from ..replica.fold_cursor import FoldCursor, control_records
from ..replica.snapshots import read_snapshot
from ..spans.blobs import NO_LIMIT_MB, Blobs
from ..spans.span_log import SpanLog, key_range
from ..store.views import seconds
from .record_view import Decoder

MOST_NAMED = 10
_WHOLE = re.compile(r"ro-[0-9a-f]{12}").fullmatch


@dataclass
class Step:
    """A control record about the rollout: what was proposed and what the fold made of it.

    `reason`: why it was refused, empty where it was accepted. `duplicate`: an earlier record with the same command id was
    judged, and `reason` is that record's.
    """

    position: int
    proposal: Proposal
    reason: str
    duplicate: bool
    facts: list[Fact]


@dataclass
class History:
    """Everything the control log holds about one rollout, in log order. `rollout` is its state at the end of the log."""

    rollout: Rollout
    steps: list[Step] = field(default_factory=lambda: list[Step]())


def rollouts_of(event: AnyEvent) -> Sequence[str]:
    """The ids of all rollouts that an event is about."""
    if isinstance(event, RolloutsEnqueued):
        return [new.rollout_id for new in event.rollouts]
    if isinstance(event, RolloutStarted):
        return [event.rollout.rollout_id]
    rollout_id: str | None = getattr(event, "rollout_id", None)
    return [] if rollout_id is None else [rollout_id]


def rollouts_at_end(log: Log, wanted: Collection[str]) -> dict[str, Rollout]:
    """The rollouts of these ids that the log accepted, as they are after its last record; in order of creation.

    Blocks for the I/O, and writes nothing. A log that this release cannot fold on stands where it stops.
    """
    return fold_to_end(log, wanted)[0] if wanted else {}


def fold_to_end(log: Log, wanted: Collection[str]) -> tuple[dict[str, Rollout], State]:
    """As `rollouts_at_end`, with the whole state at the end of the log, which has every version of every resources id."""
    cursor = read_snapshot(log)
    found = None if cursor is None else _fold_from(log, cursor, wanted)
    if cursor is None or found is None:
        cursor = FoldCursor(log)
        found = _fold_from(log, cursor, wanted) or {}
    return dict(sorted(found.items(), key=lambda one: one[1].number)), cursor.state


def _fold_from(log: Log, cursor: FoldCursor, wanted: Collection[str]) -> dict[str, Rollout] | None:
    """Fold to the end; None where an archived rollout was met neither there nor in the index."""
    left: dict[str, Rollout] = {}
    names = frozenset(wanted)
    from_start, state = cursor.next_offset == 0, cursor.state
    for _, outcome in cursor.fold():
        left.update((gone.rollout_id, gone) for gone, _ in outcome.archived if gone.rollout_id in names)
    found = {one: state.rollouts[one] for one in names if one in state.rollouts}
    hashes = {one: state.archived.get(one) for one in names if one not in found}
    archived = [one for one, state_hash in hashes.items() if state_hash is not None]
    found.update((one, left[one]) for one in archived if one in left)
    missing = [one for one in archived if one not in left]
    if not missing or from_start:
        return found
    for rollout_id, body in read_bodies(log, missing).items():
        rollout = unpack(body) if hash_of(body) == hashes[rollout_id] else None
        if rollout is not None:
            found[rollout_id] = rollout
    return found if all(one in found for one in missing) else None


def has_rollout(log: Log, name: str) -> bool:
    """Whether `name` is the whole id of a rollout, by the newest snapshot and the records after it.

    False where there is no snapshot to ask, which costs less than to search every record: `find_rollout` does that.
    """
    cursor = read_snapshot(log) if _WHOLE(name) else None
    if cursor is None:
        return False
    for _ in cursor.fold():
        pass
    return name in cursor.state.rollouts or cursor.state.archived.get(name) is not None


def find_rollout(log: Log, prefix: str) -> str:
    """The one rollout whose id, or one of whose attempts' ids, is or begins with `prefix`; a whole id wins.

    Raises `NotFound` where there is none, `InvalidInput` where there are several.
    """
    if not prefix:
        raise InvalidInput("an id has at least one character")
    needle = codec.needle(prefix)
    found: dict[str, None] = {}
    exact: dict[str, None] = {}
    for record in control_records(log):
        if needle not in record.value:
            continue
        try:
            event = decode(record.value).event
        except (UnknownEvent, Undecodable):
            continue
        claim: Claim | None = getattr(event, "claim", None)
        for rollout_id in rollouts_of(event):
            names = (rollout_id,) if claim is None else (rollout_id, claim.attempt_id)
            if prefix in names:
                exact[rollout_id] = None
            elif any(name.startswith(prefix) for name in names):
                found[rollout_id] = None
    wanted = exact or found
    if not wanted:
        raise NotFound(f"the log holds no rollout and no attempt whose id begins with {prefix}")
    if len(wanted) > 1:
        several = ", ".join(list(wanted)[:MOST_NAMED]) + (", ..." if len(wanted) > MOST_NAMED else "")
        raise InvalidInput(f"{prefix} may be any of {len(wanted)} rollouts: {several}")
    return next(iter(wanted))


def find_resources(log: Log, name: str) -> str | None:
    """The resources id that is `name`, or the only one that begins so; None without any. Raises `InvalidInput` for several."""
    known = fold_to_end(log, ())[1].resources
    if name in known:
        return name
    found = [one for one in known if name.startswith("rs-") and one.startswith(name)]
    if len(found) > 1:
        raise InvalidInput(f"{name} may be any of {len(found)} resources: {', '.join(found[:MOST_NAMED])}")
    return found[0] if found else None


def history_of(log: Log, rollout_id: str) -> History:
    """Fold the log and keep what is about this rollout. Raises `NotFound`, `LogCorrupt`.

    What the fold makes of a record is known only where it is folded. So the fold begins with the newest snapshot where no
    record before it names the rollout, else with the first event.
    """
    steps: list[Step] = []
    last: Rollout | None = None

    def keep(outcome: Outcome) -> None:
        nonlocal last
        last = next((gone for gone, _ in outcome.archived if gone.rollout_id == rollout_id), last)
        proposal, verdict = outcome.proposal, outcome.verdict
        if proposal is None or verdict is None or rollout_id not in rollouts_of(proposal.event):
            return
        made = [f for f in facts_of(batch_of(outcome), log.log_id) if f.rollout_id == rollout_id]
        steps.append(Step(outcome.position, proposal, verdict.reason, outcome.duplicate, made))

    cursor = _before(log, rollout_id)
    for _, outcome in cursor.fold():
        keep(outcome)
    rollout = cursor.state.rollouts.get(rollout_id, last)
    if rollout is None:
        raise NotFound.rollout(rollout_id)
    return History(rollout, steps)


def _before(log: Log, rollout_id: str) -> FoldCursor:
    """A cursor before the first record that names the rollout."""
    restored = read_snapshot(log)
    if restored is None:
        return FoldCursor(log)
    state = restored.state
    if rollout_id in state.rollouts or state.archived.get(rollout_id) is not None:
        return FoldCursor(log)
    needle = codec.needle(rollout_id)
    for record in control_records(log):  # refused ones too; looking is much less work than folding
        if record.offset >= restored.next_offset:
            break
        if needle in record.value:
            return FoldCursor(log)
    return restored


def rollout_report(log: Log, rollout_id: str) -> dict[str, Any]:
    """One rollout in plain data: its fields, attempts, events with their verdicts, rewards and spans. Raises `NotFound`."""
    history = history_of(log, rollout_id)
    rollout = history.rollout
    spans = SpanLog(log, Blobs(log, NO_LIMIT_MB)).read(rollout_id, within=key_range(rollout))
    decoder = Decoder(log)
    ordered = sorted(spans, key=lambda span: span.sequence_id)
    return {
        "rollout_id": rollout.rollout_id,
        "status": rollout.status,
        "mode": rollout.mode,
        "input": decoder.payload(rollout.input),
        "metadata": decoder.payload(rollout.metadata),
        "resources_id": rollout.resources_id,
        "resources_version": rollout.resources_version,
        "start_time": seconds(rollout.created_us),
        "end_time": seconds(rollout.ended_us),
        "max_attempts": rollout.config.max_attempts,
        "retry_condition": list(rollout.config.retry_condition),
        "attempts": [_attempt(attempt, history, ordered, decoder) for attempt in rollout.attempts],
        "events": [_event(step, history) for step in history.steps],
        "rewards": _rewards(ordered),
        "spans": [span.model_dump() for span in ordered],
    }


def _attempt(attempt: Attempt, history: History, spans: list[Span], decoder: Decoder) -> dict[str, Any]:
    own = attempt_spans(spans, attempt.attempt_id)
    metadata: Any = decoder.payload(attempt.metadata)
    mine = [step for step in history.steps if getattr(step.proposal.event, "sequence_id", None) == attempt.sequence_id]
    return {
        "attempt_id": attempt.attempt_id,
        "sequence_id": attempt.sequence_id,
        "generation": attempt.generation,
        "status": attempt.status,
        "worker_id": attempt.worker_id,
        "start_time": seconds(attempt.started_us),
        "end_time": seconds(attempt.ended_us),
        "counted": attempt.counted,
        "metadata": metadata,
        "spans": len(own),
        "reward": find_final_reward(own),
        "refused": [_remark(step) for step in mine if step.reason and not step.duplicate and _is_result(step)],
        "late": [_remark(step) for step in mine if any(fact.type == AttemptLate.type for fact in step.facts)],
        "error": (mapping(metadata) or {}).get("error"),
        "exceptions": [_exception(span) for span in own if span.name == AGL_EXCEPTION],
        "output": next((_output(span) for span in own if span.name == AGL_OUTPUT), None),
    }


def _is_result(step: Step) -> bool:
    """A refused race of two claimers is no result of the attempt; a refused update, expiry or heartbeat is."""
    return getattr(step.proposal.event, "claim", None) is None


def _remark(step: Step) -> dict[str, Any]:
    return {
        "position": step.position,
        "type": type_of(step.proposal.event),
        "status": getattr(step.proposal.event, "status", None),
        "reason": step.reason,
    }


def _event(step: Step, history: History) -> dict[str, Any]:
    return {
        "position": step.position,
        "time": step.proposal.time_us / 1_000_000,
        "type": type_of(step.proposal.event),
        "command_id": step.proposal.id,
        "sequence_id": getattr(step.proposal.event, "sequence_id", None),
        "verdict": "duplicate" if step.duplicate else f"refused: {step.reason}" if step.reason else "accepted",
        "facts": [{"id": fact.id, "type": fact.type, "data": fact.data} for fact in step.facts],
    }


def _rewards(spans: list[Span]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for span in spans:
        value = get_reward_value(span)
        if value is not None:
            named = {reward.name: reward.value for reward in get_rewards_from_span(span)}
            found.append(
                {"attempt_id": span.attempt_id, "sequence_id": span.sequence_id, "value": value, "dimensions": named}
            )
    return found


def _exception(span: Span) -> dict[str, Any]:
    return {part: span.attributes.get(f"exception.{part}") for part in ("type", "message", "stacktrace")}


def _output(span: Span) -> dict[str, Any]:
    sources = ("head", "tail", "total_bytes", "dropped_bytes", "stdout_bytes", "stderr_bytes", "log_bytes")
    return {part: span.attributes.get(f"{AGL_OUTPUT}.{part}") for part in sources}
