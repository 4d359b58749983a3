"""Many seeded histories of nodes, runners and timekeepers keep the promises, and break them when a rule is left out."""

from __future__ import annotations

import os

import pytest

from agentlightning.core.fold.apply import apply
from agentlightning.core.fold.state import State

from ...core.fold.faults import switched_on
from .simulation import Simulation

SEEDS = 300 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 24
STEPS = 240


@pytest.mark.parametrize("first", range(0, SEEDS, 8))
def test_one_owner_and_one_outcome_hold_in_every_history(first: int) -> None:
    for seed in range(first, first + 8):
        Simulation(seed).run(STEPS).check()


def test_the_simulated_world_gets_work_done_and_meets_trouble() -> None:
    world = Simulation(1).run(STEPS)
    state = world.nodes[0].state
    assert len(world.told) > 15
    assert state.refused > 20
    assert any(len(rollout.attempts) > 1 for rollout in state.rollouts.values())


@pytest.mark.parametrize(
    "fault",
    ["trust_the_acknowledgement", "fresh_basis_on_retry", "apply_twice", "evict_by_count", "claims_without_sequence",
     "no_basis_check", "clock_from_wall_time", "archive_by_memory", "late_success_applied"],
)  # fmt: skip
def test_a_fault_is_noticed_within_a_few_seeds(fault: str) -> None:
    with switched_on(fault), pytest.raises((AssertionError, KeyError)):
        for seed in range(30):
            Simulation(seed).run(STEPS).check()


def test_one_seed_gives_one_history() -> None:
    assert Simulation(5).run(60).log == Simulation(5).run(60).log


def _with_power_cuts(seed: int) -> Simulation:
    world = Simulation(seed)
    for number in range(STEPS):
        world.step(quiet=False)
        if number % 60 == 59:
            world.truncate(12)
    return world.run(0)


def test_nobody_answers_from_a_lost_suffix() -> None:
    for seed in range(8):
        _with_power_cuts(seed).check()


def test_a_lost_suffix_takes_effect_when_histories_are_not_compared() -> None:
    def foreign(seed: int) -> int:
        world = _with_power_cuts(seed)
        return _reasons(world).count("foreign_history")

    assert sum(map(foreign, range(3))) > 0
    with switched_on("no_basis_fingerprint"):
        assert sum(map(foreign, range(3))) == 0


def _reasons(world: Simulation) -> list[str]:
    state = State()
    verdicts = [apply(state, value).verdict for value in world.log]
    return [verdict.reason if verdict is not None else "" for verdict in verdicts]


def test_time_goes_on_without_the_first_timekeeper() -> None:
    world = Simulation(3)
    world.nodes[0].frozen_until = 1 << 40
    for _ in range(STEPS):
        world.step(quiet=False)
    assert world.nodes[1].state.time_ms > 20_000
