"""What algorithms are written with: the store and the proxy as arguments, and batches of a dataset without end."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from ..core.errors import InvalidInput
from ..core.model import Dataset

__all__ = ["batch_iter_over_dataset", "with_llm_proxy", "with_store"]

T = TypeVar("T")
Method = Callable[..., Awaitable[Any]]


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
            started = auto_start and not await _settled(proxy.is_running())
            if started:
                await _settled(proxy.start())
            try:
                return await func(self, proxy, *args, **kwargs)
            finally:
                if started:
                    await _settled(proxy.stop())

        return wrapper

    return decorate


async def _settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def batch_iter_over_dataset(dataset: Dataset[T], batch_size: int) -> Iterator[Sequence[T]]:
    """Batches of ``batch_size`` without end, from one shuffled pass after the other (``random`` decides).

    No batch has an index twice; what is left of a pass is the beginning of the next batch. Where a batch is at least as
    large as the dataset, each is the whole dataset, shuffled anew. ValueError for an empty dataset or batch.
    """
    length = len(dataset)
    if length == 0 or batch_size < 1:
        raise InvalidInput(f"There is no batch of {batch_size} of {length} samples")
    indices = list(range(length))
    if batch_size >= length:
        while True:
            random.shuffle(indices)
            yield [dataset[index] for index in indices]
    batch: list[int] = []
    waiting: list[int] = []
    while True:
        if not waiting:
            random.shuffle(indices)
            waiting = list(indices)
        # What the batch has already from the pass before waits for the next one; nothing of it is lost.
        taken = next((place for place, index in enumerate(waiting) if index not in batch), None)
        if taken is None:
            random.shuffle(indices)
            waiting += indices
            continue
        batch.append(waiting.pop(taken))
        if len(batch) == batch_size:
            yield [dataset[index] for index in batch]
            batch = []
