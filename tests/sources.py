"""The Python files of this repository and their syntax trees, for the tests that read code instead of running it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "projections", "rest", "runners", "algorithms", "compat", "cli")
"""From the ground up: a room may import itself and the rooms before it."""
OLD_PATHS = ROOT / "compat" / "paths"
"""Modules of the older releases' import paths, which are no part of a room: they re-export and hold no code."""
ROOT_FILES = ("__init__.py", "__main__.py")


@dataclass(frozen=True)
class Source:
    """One Python file: `name` is its path from the repository root, with slashes."""

    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @property
    def room(self) -> str:
        """The room, or the folder such as `tests`; empty for a file at the root."""
        return self.name.split("/")[0] if "/" in self.name else ""

    @property
    def module(self) -> str:
        """The dotted name below the package: `core.log` for core/log/interface.py, `core` for core/__init__.py."""
        return self.name.removesuffix(".py").removesuffix("__init__").strip("/").replace("/", ".")

    @property
    def is_package(self) -> bool:
        return self.name.endswith("__init__.py")


def read(path: Path) -> Source:
    return Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))


def product() -> list[Source]:
    """Every file that ships in the wheel, but for the old import paths."""
    paths = [ROOT / name for name in ROOT_FILES]
    for room in ROOMS:
        paths += sorted(path for path in (ROOT / room).rglob("*.py") if OLD_PATHS not in path.parents)
    return [read(path) for path in paths]


def everything() -> list[Source]:
    """What ships, the examples, the scripts beside the package and the tests."""
    paths = [path for folder in ("deploy", "examples", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    return product() + [read(path) for path in paths]
