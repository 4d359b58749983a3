"""Clocks: the one of the machine and the one that tests hold."""

from __future__ import annotations

import time

import pytest

from agentlightning.core.clock import Clock, ManualClock, SystemClock


def test_the_system_clock_reads_the_machines() -> None:
    clock: Clock = SystemClock()
    before = time.time(), time.monotonic()
    between = clock.time(), clock.monotonic()
    assert before[0] <= between[0] <= time.time()
    assert before[1] <= between[1] <= time.monotonic()


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(100.0)
    assert (clock.time(), clock.monotonic()) == (100.0, 0.0)
    clock.advance(2.5)
    assert (clock.time(), clock.monotonic()) == (102.5, 2.5)


def test_a_jump_of_the_wall_clock_is_no_passing_of_time() -> None:
    clock = ManualClock(100.0)
    clock.jump(-50.0)
    assert (clock.time(), clock.monotonic()) == (50.0, 0.0)


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError):
        ManualClock().advance(-1.0)
