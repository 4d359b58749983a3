"""What holds for every sequence of proposals, duplicates and rubbish, and which fault breaks which of it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.core.events.schema import TimePassed
from agentlightning.core.fold.apply import apply, fold
from agentlightning.core.fold.state import State, dump, load

from .faults import switched_on
from .strategies import World

settings.register_profile("fast", max_examples=60, deadline=None)
settings.register_profile("nightly", max_examples=2000, deadline=None)
settings.load_profile("nightly" if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else "fast")

SEEDS = st.integers(0, 1 << 32)


@given(SEEDS)
def test_one_owner_one_outcome_and_queue_hold_after_every_record(seed: int) -> None:
    World(seed).run(150)


@given(SEEDS)
def test_the_invariants_hold_with_flipped_bits_in_the_log(seed: int) -> None:
    World(seed, hostile=True).run(150)


@given(SEEDS, st.integers(1, 150))
def test_same_log_same_state_from_a_snapshot_at_any_position(seed: int, cut: int) -> None:
    world = World(seed).run(150)
    whole = fold(world.values)
    tail = fold(world.values[cut:], load(dump(fold(world.values[:cut]))))
    assert dump(whole) == dump(tail) == dump(world.state)


def test_same_log_same_state_from_a_snapshot_at_every_position() -> None:
    world = World(7).run(120)
    for cut in range(len(world.values)):
        assert dump(fold(world.values[cut:], load(dump(fold(world.values[:cut]))))) == dump(world.state)


@given(SEEDS, st.lists(st.binary(max_size=80), max_size=20))
def test_arbitrary_bytes_are_refused_and_never_raise(seed: int, junk: list[bytes]) -> None:
    world = World(seed).run(20)
    for value in junk:
        before, refused = world.state.position, world.state.refused
        outcome = apply(world.state, value)
        assert world.state.halted is not None or world.state.position == before + 1
        assert outcome.accepted is False and world.state.refused <= refused + 1


@given(SEEDS)
def test_a_refusal_changes_only_position_fingerprint_verdicts_and_counters(seed: int) -> None:
    world = World(seed, archive_after=10_000)
    for _ in range(100):
        before = load(dump(world.state))
        world.step()
        after = load(dump(world.state))
        if after.refused > before.refused:
            after.position, after.fingerprint, after.verdicts = before.position, before.fingerprint, before.verdicts
            after.refused = before.refused
            assert dump(after) == dump(before)


@given(SEEDS)
def test_time_is_an_event_and_never_steps_further_than_two_ticks(seed: int) -> None:
    world = World(seed)
    for _ in range(150):
        before = world.state.time_ms
        world.step()
        assert 0 <= world.state.time_ms - before <= 10_000


def _replayed_alike(seed: int) -> None:
    world = World(seed).run(150)
    assert dump(fold(world.values)) == dump(world.state), "same-log-same-state"


def _time_bounded(seed: int) -> None:
    world = World(seed)
    for _ in range(150):
        before = world.state.time_ms
        world.step()
        assert 0 <= world.state.time_ms - before <= 10_000


def _nothing_twice(seed: int) -> None:
    world, seen = World(seed), set()
    original = world.watch.see

    def see(state: State, outcome: object) -> None:
        original(state, outcome)
        if outcome.accepted:  # type: ignore[attr-defined]
            proposal = outcome.proposal  # type: ignore[attr-defined]
            assert proposal.id not in seen, "nothing takes effect twice"
            seen.add(proposal.id)

    world.watch.see = see  # type: ignore[method-assign]
    world.run(250)


def _back_off_waits(seed: int) -> None:
    world = World(seed)
    for _ in range(200):
        world.step()
        for rollout in world.state.rollouts.values():
            last = rollout.attempts[-1] if rollout.attempts else None
            if rollout.status == "requeuing" and last is not None and last.status == "failed" and rollout.due_ms is None:
                requeued = world.state.time_ms - last.started_ms >= rollout.config.backoff_ms - 10_000
                assert requeued or rollout.config_version, "claimable during a back-off"


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("apply_twice", _nothing_twice),
        ("no_basis_check", _nothing_twice),
        ("evict_by_count", _nothing_twice),
        ("late_success_applied", lambda seed: World(seed).run(150)),
        ("clock_from_wall_time", _replayed_alike),
        ("archive_by_memory", _replayed_alike),
        ("time_step_unbounded", _time_bounded),
        ("requeue_without_backoff", _back_off_waits),
    ],
)
def test_a_broken_rule_is_noticed_within_a_few_seeds(fault: str, check: object) -> None:
    for seed in range(30):
        check(seed)  # type: ignore[operator]
    with switched_on(fault), pytest.raises((AssertionError, KeyError)):
        for seed in range(60):
            check(seed)  # type: ignore[operator]


def test_two_timekeepers_do_not_speed_time_up() -> None:
    world = World(1)
    for _ in range(10):
        start = world.state.time_ms
        first = world.proposal(TimePassed(from_ms=start, to_ms=start + 1000))
        second = world.proposal(TimePassed(from_ms=start, to_ms=start + 1000))
        world.append(first)
        world.append(second)
    assert world.state.time_ms == 10_000
