"""The modules of the older releases, made when somebody imports one; what is in them is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .old_paths import CALLABLE, GONE_MODULES, GONE_NAMES, OLD_PATHS, names_of

__all__ = ["GoneName", "OldModule", "is_old_path", "refuse_gone", "spec_of"]

_PACKAGE = __name__.split(".")[0]


def is_old_path(path: str) -> bool:
    """Whether ``path``, below the package, was a module of an older release; also one that has no successor."""
    return path in OLD_PATHS or path in GONE_MODULES


class GoneName(AttributeError):
    """A name of an older release that has no successor; the message says what to use instead."""


def refuse_gone(name: str, module: str) -> None:
    """Raise `GoneName` where an older release had ``name``, so that hasattr is False; else nothing."""
    if name in GONE_NAMES:
        raise GoneName(_gone(name, module), name=name)


def _gone(name: str, module: str) -> str:
    return f"{module} has no {name}. {GONE_NAMES[name]}"


def spec_of(fullname: str) -> ModuleSpec | None:
    """The spec of an old module; None for a name that no older release had.

    ``from agentlightning import NAME`` looks for a module of that name where the attribute is missing, and would say less
    than the attribute's error does: for a name that is gone ImportError with the same words.
    """
    path = fullname.partition(".")[2]
    if not is_old_path(path):
        module, _, name = fullname.rpartition(".")
        if name in GONE_NAMES and (module == _PACKAGE or is_old_path(module.partition(".")[2])):
            raise ImportError(_gone(name, module), name=fullname)
        return None
    return ModuleSpec(fullname, _Loader(path), origin="the table of old import paths", is_package=path in OLD_PATHS)


class OldModule(ModuleType):
    """A module whose names are those of the table; each is imported at its first use and kept."""

    def __getattr__(self, name: str) -> Any:
        path = self.__name__.partition(".")[2]
        if not name.startswith("__"):
            where = names_of(path).get(name)
            if where is not None:
                value = getattr(import_module(f"{_PACKAGE}.{where[0]}"), where[1])
                self.__dict__[name] = value
                return value
            if f"{path}.{name}" in OLD_PATHS:
                return import_module(f"{self.__name__}.{name}")
            refuse_gone(name, self.__name__)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *names_of(self.__name__.partition(".")[2])})


class _CallableModule(OldModule):
    """An old module that hides a function of the same name once it is imported, and so stands for it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, CALLABLE[self.__name__.partition(".")[2]])(*args, **kwargs)


class _Loader(Loader):
    def __init__(self, path: str) -> None:
        self._path = path

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty one; import fills in its name and its path."""
        kind = _CallableModule if self._path in CALLABLE else OldModule
        return kind(spec.name, f"Names of an older release; see {__name__.rpartition('.')[0]}.old_paths.")

    def exec_module(self, module: ModuleType) -> None:
        """Nothing runs. ImportError for a module that has no successor."""
        if self._path in GONE_MODULES:
            raise ModuleNotFoundError(f"There is no {module.__name__}. {GONE_MODULES[self._path]}", name=module.__name__)
        module.__dict__["__all__"] = list(names_of(self._path))

    def get_code(self, fullname: str) -> None:
        """`python -m` asks for it: there is none to run."""
        del fullname
