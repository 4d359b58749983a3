"""`@agl.subscriber`: a function that is handed the facts of a store, one after the other, in a process of its own."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast, overload

from ...core.errors import InvalidInput
from ...core.importing import find
from ...core.model.rollout import Fact

__all__ = ["Subscriber", "load_subscriber", "subscriber"]

F = TypeVar("F", bound=Callable[..., Any])


class Subscriber(Generic[F]):
    """A function that takes facts of some types, and is still callable as that function.

    `types`: those that it is handed; empty for all. `wants_store`: whether it takes the store as its second argument.
    """

    __name__: str

    def __init__(self, func: F, types: tuple[str, ...]) -> None:
        parameters = _positional(func)
        if not 1 <= len(parameters) <= 2:
            raise InvalidInput(
                f"{getattr(func, '__qualname__', func)!r} takes {len(parameters)} arguments; a subscriber takes a fact, and "
                "perhaps the store"
            )
        self.func = func
        self.types = types
        self.wants_store = len(parameters) == 2
        self._is_async = inspect.iscoroutinefunction(func)
        functools.update_wrapper(cast(Any, self), func, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself, with its own arguments."""
        return self.func(*args, **kwargs)

    def wants(self, fact: Fact) -> bool:
        """Whether the function is to be handed this fact."""
        return not self.types or fact.type in self.types

    async def take(self, fact: Fact, store: Any = None) -> None:
        """Call the function once; a synchronous one runs in a thread, so that the process goes on answering its broker."""
        given = (fact, store) if self.wants_store else (fact,)
        if self._is_async:
            await self.func(*given)
        else:
            result = await asyncio.to_thread(self.func, *given)
            if inspect.isawaitable(result):
                await result


def _positional(func: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        every = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):
        raise InvalidInput(f"{func!r} cannot be a subscriber: its arguments cannot be seen") from None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # What has a default is the function's own, such as a client that it keeps.
    return [one for one in every if one.kind in positional and one.default is inspect.Parameter.empty]


@overload
def subscriber(func: F, /) -> Subscriber[F]: ...
@overload
def subscriber(*types: str) -> Callable[[F], Subscriber[F]]: ...
def subscriber(*types: Any) -> Any:
    """Mark a function for `agl subscribe module:function`: ``@agl.subscriber("rollout.completed", "attempt.late")``.

    The function, synchronous or not, is called with a :class:`Fact`, and with the store where it has a second argument.
    Without types it gets every fact. It is called at least once for each: a fact whose handling was interrupted comes
    again, so remember `fact.id` where twice would do harm. What it raises is tried again, and in the end put into `dead`.
    """
    if len(types) == 1 and callable(types[0]):
        return Subscriber(cast(Any, types[0]), ())
    for one in types:
        if not isinstance(one, str) or not one:
            raise InvalidInput(f"a subscriber names types of facts such as 'rollout.completed', not {one!r}")

    def mark(func: Callable[..., Any]) -> Subscriber[Any]:
        return Subscriber(func, tuple(types))

    return mark


def load_subscriber(spec: str) -> Subscriber[Any]:
    """The subscriber that ``spec`` names: ``package.module:function`` or ``path/to/file.py:function``.

    Raises `InvalidInput` for what is missing, what does not load, and a function that is not marked.
    """
    found = find(spec, "A subscriber", "function")
    if not isinstance(found, Subscriber):
        raise InvalidInput(f'{spec} is no subscriber; mark the function with @agl.subscriber("rollout.completed")')
    return cast("Subscriber[Any]", found)
