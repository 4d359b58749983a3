"""Stores that pass every method of the contract on to another store."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from ...core.model.store_interface import LightningStore
from ..api.routes import METHODS


class Delegating(LightningStore):
    """Every asynchronous method of the contract calls :meth:`_pass_on`, unless a subclass defines it itself."""

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call method `name` of the store behind this one."""
        raise NotImplementedError(f"{type(self).__name__} does not say where {name} goes")


def _passing(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    original = getattr(LightningStore, name)

    @functools.wraps(original)
    async def method(self: Delegating, *args: Any, **kwargs: Any) -> Any:
        return await self._pass_on(name, *args, **kwargs)  # pyright: ignore[reportPrivateUsage]

    return method


for _name in (*METHODS, "add_otel_span", "decided"):
    if inspect.iscoroutinefunction(getattr(LightningStore, _name, None)):
        setattr(Delegating, _name, _passing(_name))
