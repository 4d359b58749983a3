"""The fold: what every node makes of the next record of a log. Pure, total, and the same for ever.

`apply(state, value)` takes the state after `state.position` records and the value of the next one, changes the state in
place (it owns it) and says what it made of the record. It never raises, reads no clock, draws no random number and does
no I/O, so folding the same records gives the same state, byte for byte, anywhere. Order of the checks:

1. unreadable: refused as `malformed`; an unknown type that may be skipped leaves state, verdicts and fingerprint alone,
   one that may not halts this node;
2. an id that the verdict table holds: a duplicate, answered with the first verdict;
3. a basis further back than the window: refused as `expired`; a basis of another history: refused as `foreign_history`;
4. the rule of the event's type (rules.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import msgspec

from ..events.codec import Undecodable, UnknownEvent, decode
from ..events.schema import AttemptClaimed, AttemptStarted, Proposal
from .deduplication import PRINT_BYTES, Reason, Verdict
from .rules import RULES
from .state import Rollout, State, archive_due
from .state_machine import Facts

_encode = msgspec.msgpack.Encoder().encode


class Outcome(msgspec.Struct, gc=False, eq=False):
    """What the fold made of one record.

    `verdict` is None where nothing was judged (skipped, malformed, halted). `duplicate`: the verdict is an earlier
    record's. `facts`: what it led to, in order; the id of fact i is (position, i).
    `archived` lists the rollouts that left hot state at this record, with their packed bytes.
    """

    position: int
    proposal: Proposal | None = None
    verdict: Verdict | None = None
    duplicate: bool = False
    facts: Facts = []
    archived: list[tuple[Rollout, bytes]] = []

    @property
    def accepted(self) -> bool:
        """True where this very record changed the state."""
        return self.verdict is not None and not self.duplicate and self.verdict.accepted


def apply(state: State, value: bytes, proposal: Proposal | None = None) -> Outcome:
    """Fold the next record. A halted state stays as it is: nothing after a record it cannot judge is applied.

    `proposal`: what `decode` gives for the value, from a caller who has read it already.
    """
    position = state.position
    if state.halted is not None:
        return Outcome(position)
    try:
        proposal = proposal or decode(value)
    except UnknownEvent as unknown:
        return _skip(state) if not unknown.critical else _halt(state, str(unknown))
    except Undecodable:
        outcome = Outcome(position)
        state.refused += 1
        _advance(state, value, "malformed", outcome)
        return outcome
    if proposal.noncritical:
        return _skip(state)
    outcome = Outcome(position, proposal)
    first = state.verdicts.get(proposal.id)
    if first is not None:
        outcome.verdict, outcome.duplicate = first, True
        _advance(state, value, "duplicate", outcome)
        return outcome
    event = proposal.event
    reason = check_basis(state, proposal.basis, proposal.basis_print)
    reason = reason or RULES[type(event)](state, event, proposal.time_us, outcome.facts)
    if reason:
        if state.halted is not None:
            return outcome
        state.refused += 1
        outcome.verdict = Verdict(position, reason)
    else:
        outcome.verdict = Verdict(position, "", subject_of(event) if isinstance(event, _CLAIMS) else "")
    _advance(state, value, reason, outcome, proposal.id)
    return outcome


def _skip(state: State) -> Outcome:
    """Only the position moves: a release that does not know the type has to end up with the same state."""
    outcome = Outcome(state.position)
    state.skipped += 1
    _leave(state, outcome)
    return outcome


def _halt(state: State, why: str) -> Outcome:
    state.halted = why
    return Outcome(state.position)


def check_basis(state: State, basis: int, basis_print: bytes) -> Reason:
    """Why a proposal on this basis is refused: too far back to be judged, or of a history that is not this one."""
    if basis < state.position - state.window - 1:
        return "expired"
    return "" if state.verdicts.print_at(basis) == basis_print else "foreign_history"


_CLAIMS = (AttemptClaimed, AttemptStarted)


def subject_of(event: AttemptClaimed | AttemptStarted) -> str:
    """What a retry needs to find its result again: the rollout and attempt of a claim or an outright start."""
    return f"{event.rollout_id}#{event.sequence_id}"


def _advance(state: State, value: bytes, reason: Reason, outcome: Outcome, judged: str | None = None) -> None:
    """Chain the fingerprint and leave the record; `judged` is the command whose first verdict it made."""
    made = _encode((state.position, reason, [fact.identity_of(fact) for fact in outcome.facts]))
    state.fingerprint = blake2b(state.fingerprint + value + made, digest_size=PRINT_BYTES).digest()
    _leave(state, outcome, judged)


def _leave(state: State, outcome: Outcome, judged: str | None = None) -> None:
    """Move to the next position, forget what lies behind the window."""
    state.position += 1
    state.verdicts.add(state.fingerprint, state.window + 1, judged, outcome.verdict)
    outcome.archived = archive_due(state)


def fold(values: Iterable[bytes], state: State | None = None) -> State:
    """Fold a whole log, or go on from `state`; stops where the state halts."""
    state = State() if state is None else state
    for value in values:
        apply(state, value)
        if state.halted is not None:
            break
    return state
