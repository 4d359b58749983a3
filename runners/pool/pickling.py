"""Pickling of agents, runners and tracers for another process, or for a second object of their kind."""

from __future__ import annotations

import importlib
import io
import pickle
import sys
import types
import weakref
from contextvars import ContextVar
from typing import Any, TypeVar

from ...core.errors import InvalidInput

__all__ = ["pickled", "pickled_copy"]

T = TypeVar("T")


def pickled(value: Any) -> bytes:
    """``value`` for another process, which reads it with ``pickle.loads``.

    Beyond what pickle does: a decorated function is pickled by its name, and so is the function that it wraps; weak
    references arrive as None. Raises InvalidInput where that is not possible: something that was defined inside a
    function or in an interpreter, or an open file or lock among its attributes.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    except InvalidInput:
        raise
    except Exception as error:
        # Pickling runs code of users, which may raise anything.
        raise InvalidInput(f"it cannot be pickled for another process ({type(error).__name__}: {error})") from error
    return buffer.getvalue()


def pickled_copy(value: T) -> T:
    """Another object like ``value``, which must not have begun its work; InvalidInput as for :func:`pickled`."""
    return pickle.loads(pickled(value))


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Pickle's hook: how to make ``obj`` again, or NotImplemented for its own ways."""
        if isinstance(obj, weakref.ReferenceType):
            return _nothing, ()
        if isinstance(obj, ContextVar):
            return _context_variable, (obj.name,)
        names: dict[str, Any] = getattr(obj, "__dict__", {})
        if "__wrapped__" in names and not isinstance(obj, types.FunctionType | type):
            return self._by_name(obj, names) or NotImplemented
        if isinstance(obj, types.FunctionType | type):
            _refuse_interactive(obj)
        if isinstance(obj, types.FunctionType) and obj.__closure__ is None:
            found = _found(obj.__module__, obj.__qualname__)
            if found is not obj and getattr(found, "__wrapped__", None) is obj:
                return _wrapped, (obj.__module__, obj.__qualname__)
        return NotImplemented

    @staticmethod
    def _by_name(obj: Any, names: dict[str, Any]) -> Any:
        module, name = names.get("__module__"), names.get("__qualname__")
        if not isinstance(module, str) or not isinstance(name, str) or _found(module, name) is not obj:
            return None
        _refuse_interactive(names.get("__wrapped__"))
        return _named, (module, name)


def _refuse_interactive(obj: Any) -> None:
    """Refuse what was defined in a main module that is no file: another process cannot import it."""
    main = sys.modules.get("__main__")
    if getattr(obj, "__module__", None) == "__main__" and main is not None:
        if getattr(main, "__spec__", None) is None and not getattr(main, "__file__", None):
            raise InvalidInput(f"{getattr(obj, '__name__', obj)!r} is defined in no file, so no other process finds it")


def _nothing() -> None:
    return None


def _context_variable(name: str) -> ContextVar[Any]:
    return ContextVar(name, default=None)


def _found(module: str, name: str) -> Any:
    """What ``module.name`` is; None where it is nothing."""
    try:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError):
        return None
    return value


def _named(module: str, name: str) -> Any:
    value = _found(module, name)
    if value is None:
        raise AttributeError(f"{module} has no {name} when it is imported")
    return value


def _wrapped(module: str, name: str) -> Any:
    return _named(module, name).__wrapped__
