"""Functions as algorithms: parameters are filled by their names with what the trainer has."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from ..core.model.resources import ResourcesUpdate
from ..core.model.rollout import Dataset
from .algorithm import Algorithm

__all__ = ["FunctionalAlgorithm", "algo"]

_log = logging.getLogger(__name__)


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
