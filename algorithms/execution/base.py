"""How the two sides of a run are executed: the interface of strategies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

from ...core.errors import InvalidInput
from ...core.model.store_interface import LightningStore
from ...runners.stop_events import ExecutionEvent

__all__ = [
    "AlgorithmBundle",
    "ExecutionStrategy",
    "ManagedAlgorithm",
    "ManagedRunner",
    "RunnerBundle",
    "ends_with_runners",
    "report_failure",
    "seconds_or_more",
    "whole_number",
]


class AlgorithmBundle(Protocol):
    """The algorithm's side: returns when the run is over, soon after ``event`` is set at the latest."""

    async def __call__(self, store: LightningStore, event: ExecutionEvent) -> None:
        """Run on ``store``."""
        ...


@runtime_checkable
class ManagedAlgorithm(AlgorithmBundle, Protocol):
    """The optional members of an algorithm bundle, all or none; a Trainer's has them."""

    runners_failed: bool
    """Set before the stop of a run whose runners cannot work: it closes as failed and not as interrupted."""

    @property
    def ends_with_runners(self) -> bool:
        """Whether the run is over when all runners have done their rollouts."""
        ...


class RunnerBundle(Protocol):
    """One worker's side: executes rollouts of ``store`` until ``event`` is set."""

    async def __call__(self, store: LightningStore, worker_id: int, event: ExecutionEvent) -> None:
        """Run as worker ``worker_id``, counted from 0."""
        ...


@runtime_checkable
class ManagedRunner(RunnerBundle, Protocol):
    """The optional members of a runner bundle, all or none; a Trainer's has them, for a pool of processes to set."""

    agent: Any
    make: Callable[[], Any]
    run_id: str | None
    worker_name: str | None
    max_rollouts: int | None
    given_up: int
    on_stuck: Callable[[str], None] | None
    on_execute: Callable[[str, bool], None] | None
    on_ready: Callable[[], None] | None


class ExecutionStrategy(ABC):
    """Where the algorithm and the runners are executed. ``n_runners`` wins over the trainer's."""

    n_runners: int | None = None
    own_runners = False
    """Whether :meth:`execute` calls the given runner bundle itself, so that the run has runners of its own."""
    needs_store = True
    """Whether :meth:`execute` uses the store that it is given."""

    @abstractmethod
    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore) -> None:
        """Run both sides to the end; raises what either raised. Returns after Ctrl+C too."""


def whole_number(name: str, value: Any, least: int) -> int:
    """An argument that is a whole number; InvalidInput names the argument and what it takes."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidInput(f"{name} must be at least {least}, a whole number, and not {value!r:.100}")
    return int(value)


def seconds_or_more(name: str, value: Any) -> None:
    """Check an argument in seconds; InvalidInput for less than 0 and for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InvalidInput(f"{name} must be a number of seconds, 0 or more, and not {value!r:.100}")


def report_failure(algorithm: AlgorithmBundle) -> None:
    """See :class:`ManagedAlgorithm`."""
    if isinstance(algorithm, ManagedAlgorithm):
        algorithm.runners_failed = True


def ends_with_runners(algorithm: AlgorithmBundle) -> bool:
    """See :class:`ManagedAlgorithm`."""
    return isinstance(algorithm, ManagedAlgorithm) and algorithm.ends_with_runners
