"""The record of a run as a script: which decisions follow each other, and the comparison with what is decided now."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ...core.errors import Departed, RecordEnds
from ...core.events import fact, payload
from ...core.events.run_events import run_of
from ...core.fold.state import State
from ...core.log.interface import Log
from ...core.model.status import FINISHED
from ...projections.history.replay import replay
from ...projections.history.run_index import Decision, Run, RunBook, created_by
from .recording_store import BEST, ENQUEUED, PUBLISHED, STARTED

LOOK_AHEAD = 256
"""Among so many recorded steps a decision is looked for where several tasks of an algorithm decide side by side."""


@dataclass(frozen=True)
class Step:
    """One thing that was decided: a batch of rollouts is as many steps as it has rollouts.

    `position` and `based_on` as in `Decision`. `subject`: the rollout or resources; `version` of resources.
    """

    kind: str
    position: int
    based_on: int
    digest: str
    subject: str = ""
    version: int = 0
    shown: Any = None


@dataclass
class Recording:
    """A run as the log has it: what it was, its steps, and where its rollouts were completed.

    `completed`: rollout -> positions of its outcomes, ascending. `facts`: type of fact -> the positions of such, of the whole
    log, ascending. `end`: control records in the log. `best`: the last resources that were named as the best, with the
    position of that decision. `rollout_ids`: accepted ones only, `attempts`: the latest of each, `statuses`: at the end of
    the log.
    """

    run: Run
    steps: list[Step]
    completed: dict[str, list[int]]
    end: int
    facts: dict[str, array[int]]
    best: Decision | None = None
    rollout_ids: list[str] = field(default_factory=lambda: list[str]())
    attempts: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    statuses: dict[str, str] = field(default_factory=lambda: dict[str, str]())


def recordings(log: Log, book: RunBook) -> dict[str, Recording]:
    """Every run of a log, by its id. Blocks: the log is folded once from its first record."""
    runs = book.advance()
    members: dict[str, list[str]] = {run_id: [] for run_id in runs}
    owner = {rollout_id: run_id for run_id, run in runs.items() for rollout_id in run.rollout_ids}
    completed: dict[str, list[int]] = {}
    statuses: dict[str, str] = {}
    facts: dict[str, array[int]] = {}
    attempts: dict[str, str] = {}

    def folded(outcome: Any, state: State) -> None:
        if outcome.accepted and outcome.proposal is not None:
            for new in created_by(outcome.proposal.event):
                run_id = owner.get(new.rollout_id) or run_of(payload.outline(new.metadata))
                if run_id is not None and run_id in members:
                    members[run_id].append(new.rollout_id)
        for one in outcome.facts:
            rollout_id = one.rollout_id
            if isinstance(one, fact.AttemptClaimed) and rollout_id in owner and one.attempt_id is not None:
                attempts[rollout_id] = one.attempt_id
            positions = facts.setdefault(one.type, array("q"))
            if not positions or positions[-1] != outcome.position:
                positions.append(outcome.position)
            if isinstance(one, fact.RolloutCompleted) and rollout_id is not None:
                completed.setdefault(rollout_id, []).append(outcome.position)
                statuses[rollout_id] = one.status
            elif isinstance(one, fact.RolloutClaimable) and statuses.get(str(rollout_id)) in FINISHED:
                del statuses[str(rollout_id)]

    state, _ = replay(log, on_outcome=folded)
    made: dict[str, Recording] = {}
    for run_id, run in runs.items():
        ids = members[run_id]
        best = next((one for one in reversed(run.decisions) if one.kind == BEST), None)
        steps = [step for decision in run.decisions for step in steps_of(decision)]
        mine = {one: completed[one] for one in ids if one in completed}
        ended = {one: statuses.get(one) or _status(state, one) for one in ids}
        latest = {one: attempts[one] for one in ids if one in attempts}
        made[run_id] = Recording(run, steps, mine, state.position, facts, best, ids, latest, ended)
    return made


def _status(state: State, rollout_id: str) -> str:
    rollout = state.rollouts.get(rollout_id)
    return "queuing" if rollout is None else str(rollout.status)


def steps_of(decision: Decision) -> list[Step]:
    """The steps that a decision consists of; none for the choice of the best, which is compared at the end."""
    if decision.kind == BEST:
        return []
    recorded: Any = decision.content
    content = cast("dict[str, Any]", recorded) if isinstance(recorded, dict) else {}
    if decision.kind in (ENQUEUED, STARTED):
        ids, digests = content.get("rollout_ids"), content.get("digests")
        if isinstance(ids, list) and isinstance(digests, list):
            pairs = zip(cast("list[str]", ids), cast("list[str]", digests))
            return [Step(decision.kind, decision.position, decision.based_on, digest, name) for name, digest in pairs]
    digest = str(content.get("digest", decision.digest)) if decision.kind == PUBLISHED else decision.digest
    subject, version = str(content.get("resources_id", "")), content.get("version", 0)
    return [Step(decision.kind, decision.position, decision.based_on, digest, subject, int(version or 0), recorded)]


class Script:
    """The steps of a run, to be made again. Thread-safe.

    `broken_off`: the run did not come to its end, so what an algorithm decides behind the last step departs from nothing.
    """

    def __init__(self, steps: Sequence[Step], broken_off: bool = False) -> None:
        self._steps = list(steps)
        self._made = [False] * len(self._steps)
        self._first = 0
        self._broken_off = broken_off
        self._lock = threading.Lock()
        self.made = 0
        """How many steps were made as recorded."""
        self.departed: Departed | None = None
        self.ended: RecordEnds | None = None

    @property
    def next(self) -> Step | None:
        """The first step that was not made yet; None where all were."""
        return self._steps[self._first] if self._first < len(self._steps) else None

    def take(self, kind: str, digest: str, got: str, describe: Callable[[Step], str], in_order: bool = True) -> Step:
        """The recorded step that this is. Raises `Departed` and `RecordEnds`, which stay: so does whatever follows.

        It has to be the next one, or with `in_order` false (several tasks decide side by side, and which came first was
        chance) one of the next `LOOK_AHEAD`. `describe(step)` says in words what was recorded.
        """
        with self._lock:
            if self.departed is not None or self.ended is not None:
                raise self.departed or self.ended or AssertionError
            last = self._first + (1 if in_order else LOOK_AHEAD)
            for index in range(self._first, min(last, len(self._steps))):
                step = self._steps[index]
                if not self._made[index] and (step.kind, step.digest) == (kind, digest):
                    self._made[index] = True
                    self.made += 1
                    while self._first < len(self._steps) and self._made[self._first]:
                        self._first += 1
                    return step
            following = self.next
            if following is None and self._broken_off:
                raise self.over(f"the run was broken off before the algorithm decided {got}")
            expected = "nothing more" if following is None else describe(following)
            self.departed = Departed(position=-1 if following is None else following.position, expected=expected, got=got)
            raise self.departed

    def over(self, message: str, position: int = -1) -> RecordEnds:
        """The error for what the record does not hold; it is kept."""
        self.ended = RecordEnds(message, position=position)
        return self.ended
