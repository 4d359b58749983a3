"""reward: the decorator of the first releases, for functions that compute a reward."""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ...core.model.scalars import number
from ...core.model.semconv import AGL_REWARD
from ..tracing.active import get_active_tracer
from .emitters import emit_reward
from .operation import operation

__all__ = ["reward"]

F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger(__name__)


def reward(fn: F) -> F:
    """Deprecated: record what ``fn`` (sync or async) returns as a reward; call ``emit_reward`` instead.

    The call is an operation named ``agentlightning.reward``, so that model calls made inside of it
    are a judge's and become no triplets; the reward itself follows as a span of its own. A result
    that is no number is passed on and records no reward, with a warning; so is any result where
    no trace is open. NaN and infinities are refused as :func:`emit_reward` refuses them.
    """
    warnings.warn("agl.reward is deprecated; call agl.emit_reward.", DeprecationWarning, stacklevel=2)
    recorded = operation(fn, name=AGL_REWARD)

    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return _record(fn, await (recorded if get_active_tracer() else fn)(*args, **kwargs))

        return cast(F, awaited)

    @functools.wraps(fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        return _record(fn, (recorded if get_active_tracer() else fn)(*args, **kwargs))

    return cast(F, called)


def _record(fn: Callable[..., Any], result: Any) -> Any:
    name = getattr(fn, "__name__", type(fn).__name__)
    if number(result) is None:
        _log.warning("%s returned %s, which is no reward; none is recorded.", name, type(result).__name__)
    elif get_active_tracer() is None:
        _log.warning("%s was called outside of a trace; its reward is not recorded.", name)
    else:
        emit_reward(cast(float, result))
    return result
