"""Which tracer records right now: a context variable, so that attempts side by side do not see each other's."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from ..core.errors import InvalidInput

if TYPE_CHECKING:
    from .tracer import Tracer

__all__ = ["clear_active_tracer", "get_active_tracer", "set_active_tracer"]

_ACTIVE: ContextVar[Tracer | None] = ContextVar("agentlightning_active_tracer", default=None)


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
