"""The history of one rollout, read from the log alone: its events with their verdicts, its facts, its final state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...core.errors import InvalidInput, NotFound
from ...core.events import codec
from ...core.events.codec import Undecodable, UnknownEvent, decode
from ...core.events.schema import AnyEvent, Claim, Proposal, RolloutsEnqueued, RolloutStarted
from ...core.fold.apply import Outcome, apply
from ...core.fold.state import Rollout, State
from ...core.log.interface import Log
from ...core.model.rollout import Fact
from ..facts.derived_topic import batch_of, facts_of
from ..replica.snapshots import read_snapshot
from .replay import control_records

MOST_NAMED = 10


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


def history_of(log: Log, rollout_id: str) -> History:
    """Fold the log and keep what is about this rollout. Raises `NotFound`, `LogCorrupt`.

    What the fold makes of a record is known only where it is folded. So the fold begins with the newest snapshot where no
    record before it names the rollout, else with the first event.
    """
    steps: list[Step] = []
    last: Rollout | None = None

    def heard(outcome: Outcome, state: State) -> None:
        nonlocal last
        last = next((gone for gone, _ in outcome.archived if gone.rollout_id == rollout_id), last)
        proposal, verdict = outcome.proposal, outcome.verdict
        if proposal is None or verdict is None or rollout_id not in rollouts_of(proposal.event):
            return
        made = [f for f in facts_of(batch_of(outcome), log.log_id) if f.rollout_id == rollout_id]
        steps.append(Step(outcome.position, proposal, verdict.reason, outcome.duplicate, made))

    state, offset = _before(log, rollout_id)
    for record in control_records(log, offset):
        heard(apply(state, record.value), state)
        if state.halted is not None:
            break
    rollout = state.rollouts.get(rollout_id, last)
    if rollout is None:
        raise NotFound.rollout(rollout_id)
    return History(rollout, steps)


def _before(log: Log, rollout_id: str) -> tuple[State, int]:
    """A state before the first record that names the rollout, and the offset to go on from."""
    restored = read_snapshot(log)
    if restored is None:
        return State(), 0
    state = restored.state
    if rollout_id in state.rollouts or state.archived.get(rollout_id) is not None:
        return State(), 0
    needle = codec.needle(rollout_id)
    for record in control_records(log):  # refused ones too; looking is much less work than folding
        if record.offset >= restored.next_offset:
            break
        if needle in record.value:
            return State(), 0
    return state, restored.next_offset
