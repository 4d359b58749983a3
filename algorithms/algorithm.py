"""Algorithm: what reads rollouts and publishes better resources, as a class or as a function with `@algo`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, cast

from ..core.errors import InvalidInput
from ..core.model.resources import NamedResources, ResourcesUpdate, validate_resources
from ..core.model.rollout import Dataset
from ..core.model.store_interface import LightningStore

__all__ = ["Algorithm", "Best", "FunctionalAlgorithm", "algo", "seeded", "with_llm_proxy", "with_store"]

_log = logging.getLogger(__name__)

Method = Callable[..., Awaitable[Any]]
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
        """Called by the trainer before :meth:`run`; its adapter counts from now on."""
        self._trainer, self._adapter = trainer, None

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
        """The adapter, the trainer's where none was set; ValueError without either."""
        own = self._adapter
        return _given(own if own is not None else getattr(self._trainer, "adapter", None), "Adapter")

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
        """What :meth:`set_best_resources` was last given; None before."""
        return self._best

    def get_client(self) -> Any:
        """Part of the first generation's interface; NotImplementedError unless a subclass has a client."""
        raise NotImplementedError(f"{type(self).__name__} has no client")


def _given(value: Any, what: str) -> Any:
    if value is None:
        raise InvalidInput(f"{what} has not been set for this algorithm.")
    return value


class FunctionalAlgorithm(Algorithm):
    """An algorithm made of one function, and still callable as that function.

    ``store``, ``adapter``, ``llm_proxy``, ``initial_resources``, ``train_dataset``, ``val_dataset`` and ``seed`` are passed
    by name to a function that has parameters of these names. What it returns names the best resources, where it is
    resources, what the store answered when they were published, or their id.
    """

    def __init__(self, func: Callable[..., Any]) -> None:
        self._func = func
        self._parameters = frozenset(
            name
            for name, parameter in inspect.signature(func).parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        )
        functools.update_wrapper(cast(Any, self), func, updated=())

    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        return inspect.iscoroutinefunction(self._func)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself, with its own arguments."""
        return self._func(*args, **kwargs)

    def run(
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> None | Awaitable[None]:
        """Call the function. TypeError for a dataset that it has no parameter for.

        ValueError where it asks for a store or an adapter and none was set.
        """
        arguments: dict[str, Any] = {}
        for name, dataset in (("train_dataset", train_dataset), ("val_dataset", val_dataset)):
            if name in self._parameters:
                arguments[name] = dataset
            elif dataset is not None:
                raise TypeError(f"{name} is provided but not supported by the algorithm function: {self._func!r}")
        sources: dict[str, Callable[[], Any]] = {
            "store": self.get_store,
            "adapter": self.get_adapter,
            "llm_proxy": self.get_llm_proxy,
            "initial_resources": self.get_initial_resources,
            "seed": self.get_seed,
        }
        arguments.update((name, source()) for name, source in sources.items() if name in self._parameters)
        result = self._func(**arguments)
        if inspect.isawaitable(result):
            return self._awaited(result)
        self._take(result)
        return None

    async def _awaited(self, result: Awaitable[Any]) -> None:
        self._take(await result)

    def _take(self, result: Any) -> None:
        if not isinstance(result, ResourcesUpdate | str | Mapping):
            return
        try:
            self.set_best_resources(cast(Any, result))
        except ValueError:
            _log.info("What %s returned are no resources, so none are named the best.", self._func)


def algo(func: Callable[..., Any]) -> FunctionalAlgorithm:
    """Make an algorithm of a function, synchronous or asynchronous; see :class:`FunctionalAlgorithm`."""
    return FunctionalAlgorithm(func)


def with_store(func: Method) -> Method:
    """Call a coroutine method of an algorithm with the store as its first argument; ValueError without a store."""

    @functools.wraps(func)
    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await func(self, self.get_store(), *args, **kwargs)

    return wrapper


def with_llm_proxy(required: bool = False, auto_start: bool = True) -> Callable[[Method], Method]:
    """Call a coroutine method of an algorithm with its proxy, or None, as the first argument.

    Args:
        required: ValueError where there is no proxy.
        auto_start: start one that does not run, and stop it afterwards.
    """

    def decorate(func: Method) -> Method:
        @functools.wraps(func)
        async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            proxy: Any = self.get_llm_proxy()
            if proxy is None and required:
                raise InvalidInput("LLM proxy is required but not configured.")
            if proxy is None:
                return await func(self, None, *args, **kwargs)
            started = auto_start and not await _awaited(proxy.is_running())
            if started:
                await _awaited(proxy.start())
            try:
                return await func(self, proxy, *args, **kwargs)
            finally:
                if started:
                    await _awaited(proxy.stop())

        return wrapper

    return decorate


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@contextlib.contextmanager
def seeded(seed: int | None) -> Generator[None, None, None]:
    """Seed `random`, and numpy's where it is loaded; None leaves them as they are.

    They belong to the whole process: agents in threads beside the algorithm draw from them too, and so does the client of a
    Kafka. An algorithm that has to be repeated exactly makes a `random.Random(seed)` of its own.
    """
    if seed is None:
        yield
        return
    numpy: Any = sys.modules.get("numpy")
    before = random.getstate(), numpy.random.get_state() if numpy is not None else None
    random.seed(seed)
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before[0])
        if numpy is not None:
            numpy.random.set_state(before[1])
