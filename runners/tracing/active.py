"""Which tracer records and which runner works right now: context variables, so attempts side by side keep apart."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ...core.errors import InvalidInput

if TYPE_CHECKING:
    from ..worker.base import Runner
    from .base import Tracer

__all__ = ["CURRENT_RUNNER", "clear_active_tracer", "get_active_tracer", "set_active_tracer"]

_ACTIVE: ContextVar[Tracer | None] = ContextVar("agentlightning_active_tracer", default=None)
CURRENT_RUNNER: ContextVar[tuple[Any, Runner[Any]] | None] = ContextVar("agentlightning_current_runner", default=None)
"""The agent of the attempt of this context, and the runner that executes it."""


def set_active_tracer(tracer: Tracer) -> None:
    """Make ``tracer`` the one that emitters of this context use; ValueError when there is one already."""
    if _ACTIVE.get() is not None:
        raise InvalidInput("An active tracer is already set. Cannot set a new one.")
    _ACTIVE.set(tracer)


def get_active_tracer() -> Tracer | None:
    """The tracer of this context; None outside of a trace."""
    return _ACTIVE.get()


def clear_active_tracer() -> None:
    """Forget the tracer of this context; does nothing without one."""
    _ACTIVE.set(None)
