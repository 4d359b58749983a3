"""Importing: an object of a user's program by ``module:name``, and functions called once a module has been imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import InvalidInput

__all__ = ["ImportHook", "find"]


def find(spec: str, what: str, word: str) -> Any:
    """What ``spec`` names: ``package.module:name`` or ``path/to/file.py:name``; the name may be dotted.

    ``what`` and ``word`` say in errors what was looked for ("An agent", "agent"). A module is looked for in the working
    directory too. InvalidInput (a ValueError) says what is missing, and what the module raised while it was imported,
    with file and line.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise InvalidInput(f"{what} is named as module:{word} or file.py:{word}, not {spec!r}")
    value: Any = _module(where)
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise InvalidInput(f"{where} has no {name!r}") from None
    return value


def _module(where: str) -> ModuleType:
    if where.endswith(".py"):
        path = Path(where).resolve()
        if not path.is_file():
            raise InvalidInput(f"There is no file {where}")
        module_spec = importlib.util.spec_from_file_location(path.stem, path)
        if module_spec is None or module_spec.loader is None:
            raise InvalidInput(f"{where} is no Python file")
        module = importlib.util.module_from_spec(module_spec)
        # As for a script: what lies beside it can be imported, and it can be pickled by name.
        _search(str(path.parent))
        sys.modules[path.stem] = module
        try:
            module_spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[path.stem]
            raise _not_loaded(where, error) from error
        return module
    _search(str(Path.cwd()))
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(error.name + ".")):
            raise InvalidInput(f"There is no module {where}") from None
        raise _not_loaded(where, error) from error
    except Exception as error:
        raise _not_loaded(where, error) from error


def _not_loaded(where: str, error: Exception) -> InvalidInput:
    """What a person needs to mend the module: the error, and the last line of code that led to it."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
        reason = error.msg
    else:
        # The importing machinery has frames of its own at the end.
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
        place = f"{frames[-1].filename}, line {frames[-1].lineno}"
        reason = str(error)
    return InvalidInput(f"{where} cannot be loaded: {type(error).__name__}: {reason} ({place})")


def _search(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


class ImportHook(MetaPathFinder):
    """Calls functions with the modules of their names, each time the program has imported one; importing them is not for us."""

    def __init__(self, acts: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self._acts = acts

    def install(self) -> None:
        """Act on what is imported from now on, and on what is loaded already."""
        sys.meta_path.insert(0, self)
        for name, act in self._acts.items():
            module = sys.modules.get(name)
            if module is not None:
                act(module)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the other finders have, which acts on the module when its code has run."""
        act = self._acts.get(fullname)
        if act is None:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((one for one in found if one is not None), None)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                if module.__name__ == fullname:  # a loader may be shared, as that of an archive is
                    act(module)

            loader.exec_module = execute_and_act
        return spec
