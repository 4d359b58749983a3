"""Replay: the state of a log at any position, folded from its first event, without snapshot and without index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ...core.errors import InvalidInput, PositionUnknown
from ...core.events.schema import RolloutRestored
from ...core.fold.apply import Outcome
from ...core.fold.state import State, unpack
from ...core.log.interface import Log
from ..replica.fold_cursor import FoldCursor, control_records


@dataclass
class Replayed:
    """What was met while folding.

    `position`: records folded, which is also what `store.fingerprint()` gives. `fingerprint`: hex. `rollouts`: number by
    status, archived ones too. `refused`: number of refused proposals by reason. `duplicates`: records whose command had
    been judged before. `last_us`: the wall clock in the last proposal, microseconds since 1970. `halted`: why this release
    cannot fold on, or None. `departed`: writer -> positions of its records that were refused as `foreign_history` and
    whose writer did not go on with this history.
    """

    position: int = 0
    fingerprint: str = ""
    rollouts: dict[str, int] = field(default_factory=lambda: dict[str, int]())
    refused: dict[str, int] = field(default_factory=lambda: dict[str, int]())
    duplicates: int = 0
    last_us: int | None = None
    halted: str | None = None
    departed: dict[str, list[int]] = field(default_factory=lambda: dict[str, list[int]]())


def position_at(log: Log, time: float) -> int:
    """How many records stand before the first that was written at `time` (Unix seconds) or later.

    Times are those of the writers' clocks. Where all are older, the position is that of the end of the log.
    """
    moment_us = round(time * 1_000_000)
    position = 0
    for record in control_records(log):
        if record.timestamp_us >= moment_us:
            break
        position += 1
    return position


def replay(
    log: Log,
    to: int | None = None,
    on_outcome: Callable[[Outcome, State], None] | None = None,
) -> tuple[State, Replayed]:
    """The state after the first `to` records of the log (None: all that are there) and what was met on the way.

    `on_outcome` is called with each outcome right after its record was folded. Raises `InvalidInput` for a negative `to`,
    `PositionUnknown` where the log is shorter, `LogCorrupt` where a record is damaged.
    """
    if to is not None and to < 0:
        raise InvalidInput(f"a position is 0 or more, not {to}")
    cursor = FoldCursor(log)
    state, archived = cursor.state, Counter[str]()
    met = Replayed()
    refused = Counter[str]()
    for _, outcome in cursor.fold(to):
        _count(outcome, met, refused, archived)
        if on_outcome is not None:
            on_outcome(outcome, state)
    if to is not None and state.position < to and state.halted is None:
        raise PositionUnknown(f"the log ends at position {state.position}; there is no position {to} in it yet")
    malformed = state.refused - sum(refused.values())  # they have no verdict, so only the fold's own count knows them
    if malformed > 0:
        refused["malformed"] = malformed
    statuses = Counter(str(rollout.status) for rollout in state.rollouts.values())
    met.rollouts = dict(sorted((+(statuses + archived)).items()))
    met.refused = dict(sorted(refused.items()))
    met.position, met.fingerprint, met.halted = state.position, state.fingerprint.hex(), state.halted
    return state, met


def _count(outcome: Outcome, met: Replayed, refused: Counter[str], archived: Counter[str]) -> None:
    if outcome.proposal is not None:
        met.last_us = outcome.proposal.time_us
    if outcome.duplicate:
        met.duplicates += 1
    elif outcome.verdict is not None and not outcome.verdict.accepted:
        refused[outcome.verdict.reason] += 1
    _departures(outcome, met)
    if outcome.accepted and outcome.proposal is not None and isinstance(outcome.proposal.event, RolloutRestored):
        rollout = unpack(outcome.proposal.event.body)
        if rollout is not None:
            archived[str(rollout.status)] -= 1
    for rollout, _ in outcome.archived:
        archived[str(rollout.status)] += 1


def _departures(outcome: Outcome, met: Replayed) -> None:
    """Tell a client's false basis from a log that was changed.

    A writer that passes on what a client claims goes on with the history in which it was refused. A writer whose log was
    changed after it had written never does: what it writes from there on is refused, and a restart is another writer.
    """
    proposal, verdict = outcome.proposal, outcome.verdict
    if proposal is None or verdict is None or outcome.duplicate:
        return
    if verdict.reason == "foreign_history":
        met.departed.setdefault(proposal.writer, []).append(outcome.position)
    elif proposal.writer in met.departed:
        left = [position for position in met.departed.pop(proposal.writer) if position > proposal.basis]
        if left:
            met.departed[proposal.writer] = left
