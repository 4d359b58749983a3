"""Runner: what executes rollouts, and the context in which it is set up and torn down."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from ...core.model.hooks import Hook, ParallelWorkerBase
from ...core.model.resources import NamedResources
from ...core.model.rollout import Rollout, RolloutMode
from ...core.model.store_interface import LightningStore
from ..stop_events import StopSignal

__all__ = ["Runner"]

T = TypeVar("T")
R = TypeVar("R", bound="Runner[Any]")

_log = logging.getLogger(__name__)


class Runner(ParallelWorkerBase, Generic[T]):
    """Base of runners: executes an agent on rollouts of a store."""

    @abstractmethod
    def init(self, agent: Any, *, hooks: Sequence[Hook] | None = None, **kwargs: Any) -> None:
        """Take the agent and the hooks."""

    @abstractmethod
    def init_worker(self, worker_id: int, store: LightningStore, **kwargs: Any) -> None:
        """Take the store; the tracer starts here."""

    @abstractmethod
    async def iter(self, *, event: StopSignal | None = None) -> None:
        """Execute rollouts from the queue until ``event`` is set."""

    @abstractmethod
    async def step(
        self,
        input: T,
        *,
        resources: NamedResources | None = None,
        mode: RolloutMode | None = None,
        event: StopSignal | None = None,
    ) -> Rollout:
        """Execute one rollout without the queue, and return it."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Always RuntimeError: await :meth:`iter` or :meth:`step`."""
        raise RuntimeError("Use iter() or step() of the runner instead of run()")

    @contextmanager
    def run_context(
        self: R,
        *,
        agent: Any,
        store: LightningStore,
        hooks: Sequence[Hook] | None = None,
        worker_id: int | None = None,
    ) -> Generator[R, None, None]:
        """Set up, run the block, tear down in reverse; errors of the tear-down are logged.

        Args:
            agent: a LitAgent or a function.
            worker_id: number of the worker; 0 when None.
        """
        number = 0 if worker_id is None else worker_id
        started = False
        self.init(agent=agent, hooks=hooks)
        try:
            self.init_worker(number, store)
            started = True
            yield self
        finally:
            if started:
                self._log_errors_of("teardown_worker", number)
            self._log_errors_of("teardown")

    def _log_errors_of(self, method: str, *args: Any) -> None:
        try:
            getattr(self, method)(*args)
        except Exception:
            _log.exception("%s of the runner failed.", method)
