"""Agent Lightning on an event log: run agents, record what they did, and let algorithms improve them.

``import agentlightning as agl`` loads no room: a name is imported where it is first used (PEP 562), so that
the import stays quick, opens no socket and needs no optional library.

To export a name, add it twice, in alphabetical order: to ``_EXPORTS`` under the module that defines it, and to
the ``TYPE_CHECKING`` block as ``X as X``, which is what type checkers and editors read. ``tests/test_import.py``
compares the two.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .core.errors import AgentLightningError as AgentLightningError

_EXPORTS: dict[str, tuple[str, ...]] = {
    "core.errors": ("AgentLightningError",),
}
"""Module, relative to this package, and the names that it gives to ``agentlightning``."""

_MODULE_OF = dict(sorted((name, module) for module, names in _EXPORTS.items() for name in names))

__version__ = "0.1.0"
__all__ = list(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll] (the block above tells it the names)

if not TYPE_CHECKING:  # a type checker that sees __getattr__ takes every misspelt name for an export

    def __getattr__(name: str) -> object:
        """Imports an exported name at its first use and keeps it; AttributeError for any other name."""
        module = _MODULE_OF.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{module}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


def _warn_of_namesake(folders: list[str]) -> None:
    """Says so, in one sentence, where the other distribution with this import name is installed beside this one.

    Looks at the names in the installation folders only: importlib.metadata would read more and cost more than
    the rest of this import.
    """
    for folder in folders:
        if os.path.basename(folder) not in ("site-packages", "dist-packages"):
            continue
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        if any(n.startswith("agentlightning-") and n.endswith((".dist-info", ".egg-info")) for n in names):
            warnings.warn(
                "The package 'agentlightning' is installed beside 'agentlightning-eventlog' and both provide the "
                "module 'agentlightning'; uninstall both and reinstall the one that you mean.",
                stacklevel=3,
            )
            return


_warn_of_namesake(sys.path)
