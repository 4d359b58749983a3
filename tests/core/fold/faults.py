"""Deliberate faults: each breaks one rule of the fold or of its writers, so that a test can show who would notice.

`with switched_on("apply_twice"): ...`. Faults of the fold replace functions of the product; faults of writers (`WRITER`)
are read by the simulated writers of tests/sim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from agentlightning.core.events import schema
from agentlightning.core.fold import apply, rules, state_machine
from agentlightning.core.fold.deduplication import VerdictTable
from agentlightning.core.fold.state import State, archive_due

WRITER = frozenset({"trust_the_acknowledgement", "fresh_basis_on_retry"})
"""Faults of those who write, not of the fold."""
_on: set[str] = set()


def is_on(name: str) -> bool:
    """Asked by the simulated writers."""
    return name in _on


def _rule(kind: type[msgspec.Struct], make: Callable[[Any], Any]) -> Any:
    return patch.dict(rules.RULES, {kind: make(rules.RULES[kind])})


def _replaced(kind: type[msgspec.Struct], change: Callable[[State, Any], Any]) -> Any:
    """Let a rule believe that the event assumes something else."""

    def make(rule: Any) -> Any:
        def judged(state: State, event: Any, time_us: int, facts: Any) -> str:
            return rule(state, change(state, event), time_us, facts)

        return judged

    return _rule(kind, make)


def _no_fence() -> Any:
    def fenced(state: State, event: Any) -> Any:
        rollout = rules._find(state, event.rollout_id)
        if isinstance(rollout, str) or not rollout.attempts:
            return rollout if isinstance(rollout, str) else "unknown_attempt"
        return rollout, rollout.attempts[-1]

    return patch.object(rules, "_fenced", fenced)


def _blind_claim(state: State, event: schema.AttemptClaimed) -> schema.AttemptClaimed:
    rollout = state.rollouts.get(event.rollout_id)
    if rollout is None:
        return event
    state.queue.setdefault(event.rollout_id, None)
    return msgspec.structs.replace(event, sequence_id=len(rollout.attempts) + 1, generation=rollout.generation)


def _ever_changing_expiry(state: State, event: schema.AttemptExpired, what: str) -> schema.AttemptExpired:
    rollout = state.rollouts.get(event.rollout_id)
    if rollout is None or not 1 <= event.sequence_id <= len(rollout.attempts):
        return event
    if what == "revivals":
        return msgspec.structs.replace(event, revivals=rollout.attempts[event.sequence_id - 1].revivals)
    return msgspec.structs.replace(event, config_version=rollout.config_version)


def _late_success(rule: Any) -> Any:
    def judged(state: State, event: Any, time_us: int, facts: Any) -> str:
        reason = rule(state, event, time_us, facts)
        rollout = state.rollouts.get(event.rollout_id)
        if event.status == "succeeded" and rollout is not None and rollout.status == "failed":
            state_machine.finish(state, rollout, "succeeded", time_us, facts)
            return ""
        return reason

    return judged


def _unbounded_time(state: State, event: schema.TimePassed, time_us: int, facts: Any) -> str:
    state.time_ms = event.to_ms
    return ""


def _wall_clock(rule: Any) -> Any:
    turns = iter(range(1, 1 << 30))  # what a machine's own clock would add: never the same twice

    def judged(state: State, event: schema.TimePassed, time_us: int, facts: Any) -> str:
        reason = rule(state, event, time_us, facts)
        if not reason:
            state.time_ms += next(turns) % 7
        return reason

    return judged


def _no_backoff(state: State, rollout: Any, lag_ms: int, facts: Any) -> None:
    state_machine.make_claimable(state, rollout, "requeuing", facts)


def _archive_by_memory() -> Any:
    """Every other replica is small: it lets finished rollouts go as soon as it holds more than a few."""
    sizes: dict[int, int] = {}

    def due(state: State) -> Any:
        room = sizes.setdefault(id(state), 3 if len(sizes) % 2 else 1000)
        state.archive_after, kept = (0 if len(state.rollouts) > room else 1 << 40), state.archive_after
        try:
            return archive_due(state)
        finally:
            state.archive_after = kept

    return patch.object(apply, "archive_due", due)


def _evict_by_count() -> Any:
    add = VerdictTable.add

    def forgetful(table: VerdictTable, fingerprint: bytes, kept: int, *judged: Any) -> None:
        add(table, fingerprint, kept, *judged)
        known = [at for at, command_id in enumerate(table._ids) if command_id is not None]
        for at in known[:-10]:
            del table._verdicts[str(table._ids[at])]
            table._ids[at] = None

    return patch.object(VerdictTable, "add", forgetful)


FAULTS: dict[str, Callable[[], Any]] = {
    "no_fence": _no_fence,
    "apply_twice": lambda: patch.object(VerdictTable, "get", lambda table, command_id: None),
    "evict_by_count": _evict_by_count,
    "no_basis_check": lambda: patch.object(apply, "check_basis", lambda state, basis, basis_print: ""),
    "no_basis_fingerprint": lambda: patch.object(
        apply,
        "check_basis",
        lambda state, basis, basis_print: "expired" if basis < state.position - state.window - 1 else "",
    ),
    "expiry_without_revivals": lambda: _replaced(
        schema.AttemptExpired, lambda state, event: _ever_changing_expiry(state, event, "revivals")
    ),
    "expiry_without_config_version": lambda: _replaced(
        schema.AttemptExpired, lambda state, event: _ever_changing_expiry(state, event, "config")
    ),
    "clock_from_wall_time": lambda: _rule(schema.TimePassed, _wall_clock),
    "time_step_unbounded": lambda: _rule(schema.TimePassed, lambda rule: _unbounded_time),
    "time_without_from": lambda: _replaced(
        schema.TimePassed,
        lambda state, event: schema.TimePassed(
            from_ms=state.time_ms, to_ms=state.time_ms + event.to_ms - event.from_ms
        ),
    ),
    "late_success_applied": lambda: _rule(schema.AttemptUpdated, _late_success),
    "archive_by_memory": _archive_by_memory,
    "requeue_without_backoff": lambda: patch.object(state_machine, "requeue", _no_backoff),
    "claims_without_sequence": lambda: _replaced(schema.AttemptClaimed, _blind_claim),
}


@contextmanager
def switched_on(name: str) -> Iterator[None]:
    """Break one rule while the block runs."""
    with ExitStack() as stack:
        if name in WRITER:
            _on.add(name)
            stack.callback(_on.discard, name)
        else:
            stack.enter_context(FAULTS[name]())
        yield
