"""Algorithm: what reads rollouts and publishes better resources, and what a trainer hands to it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from typing import Any, cast

from ..core.errors import InvalidInput
from ..core.model.resources import NamedResources, ResourcesUpdate, validate_resources
from ..core.model.rollout import Dataset
from ..core.model.store_interface import LightningStore

__all__ = ["Algorithm", "Best"]

Best = Mapping[str, Any] | ResourcesUpdate | str
"""How an algorithm names its best resources: the resources, what the store answered when they were published, or their id."""


class Algorithm(ABC):
    """Base of all algorithms: override :meth:`run`, as a plain method or as a coroutine.

    A subclass need not call ``super().__init__()``. Whatever is set here is held strongly, so that
    ``algorithm.set_adapter(TraceToMessages())`` is enough.
    """

    _trainer: Any = None
    _llm_proxy: Any = None
    _adapter: Any = None
    _store: LightningStore | None = None
    _initial_resources: NamedResources | None = None
    _seed: int | None = None
    _best: Best | None = None

    def is_async(self) -> bool:
        """Whether :meth:`run` is a coroutine function."""
        return inspect.iscoroutinefunction(self.run)

    @abstractmethod
    def run(
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> None | Awaitable[None]:
        """Do the work; returning ends the run. A plain method runs in a thread of its own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`run`."""
        return self.run(*args, **kwargs)

    def set_trainer(self, trainer: Any) -> None:
        """Called by the trainer before :meth:`run`."""
        self._trainer = trainer

    def get_trainer(self) -> Any:
        """The trainer; ValueError when none was set."""
        return _given(self._trainer, "Trainer")

    def set_llm_proxy(self, llm_proxy: Any) -> None:
        """Take a proxy of models; None takes it away."""
        self._llm_proxy = llm_proxy

    def get_llm_proxy(self) -> Any:
        """The proxy; None when there is none."""
        return self._llm_proxy

    def set_adapter(self, adapter: Any) -> None:
        """Take what makes training data of spans."""
        self._adapter = adapter

    def get_adapter(self) -> Any:
        """The adapter; ValueError when none was set."""
        return _given(self._adapter, "Adapter")

    def set_store(self, store: LightningStore) -> None:
        """Take the store of the run."""
        self._store = store

    def get_store(self) -> LightningStore:
        """The store; ValueError when none was set."""
        return cast(LightningStore, _given(self._store, "Store"))

    def set_initial_resources(self, resources: NamedResources) -> None:
        """Take the resources to begin with."""
        self._initial_resources = resources

    def get_initial_resources(self) -> NamedResources | None:
        """The resources to begin with; None when there are none."""
        return self._initial_resources

    def set_seed(self, seed: int | None) -> None:
        """Take the seed of the run."""
        self._seed = seed

    def get_seed(self) -> int | None:
        """The seed of the run, for a `random.Random` of the algorithm's own; None when there is none."""
        return self._seed

    def set_best_resources(self, best: Best | None) -> None:
        """Name the best resources found so far: they are what ``fit`` returns. Call it as often as they change.

        ValueError for a mapping that has something else in it.
        """
        self._best = validate_resources(best) if isinstance(best, Mapping) else best

    def get_best_resources(self) -> Best | None:
        """What :meth:`set_best_resources` was last told; None before."""
        return self._best

    def get_client(self) -> Any:
        """Part of the first generation's interface; NotImplementedError unless a subclass has a client."""
        raise NotImplementedError(f"{type(self).__name__} has no client")


def _given(value: Any, what: str) -> Any:
    if value is None:
        raise InvalidInput(f"{what} has not been set for this algorithm.")
    return value
