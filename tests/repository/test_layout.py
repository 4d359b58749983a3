"""The repository root is the package: what is listed is what is there, and rooms import downwards only."""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..sources import OLD_PATHS, ROOMS, ROOT, ROOT_FILES, Source, product

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports] (installed on 3.10 only)

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


TYPINGS = ROOT / "typings" / "agentlightning"


def old_paths() -> list[str]:
    """The top-level packages of the older releases; their modules: tests/compat/test_old_paths.py."""
    return [path.name for path in OLD_PATHS.iterdir() if path.name != "__pycache__"]


def folders() -> list[Path]:
    """Every folder of a room that holds a file git would keep."""
    return sorted(
        {
            path.parent
            for room in ROOMS
            for path in (ROOT / room).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and OLD_PATHS not in path.parents
        }
    )


def test_listed_packages_are_the_packages_on_disk() -> None:
    on_disk = [".".join(["agentlightning", *folder.relative_to(ROOT).parts]) for folder in folders()]
    old = {f"agentlightning.{name}": f"compat/paths/{name}" for name in old_paths()}
    assert SETUPTOOLS["packages"] == sorted(["agentlightning", *on_disk, *old])
    assert SETUPTOOLS["package-dir"] == {"agentlightning": ".", **old}
    assert [str(folder) for folder in folders() if not (folder / "__init__.py").is_file()] == []


def test_every_data_file_of_a_room_ships() -> None:
    rows: dict[str, list[str]] = SETUPTOOLS["package-data"]
    missing = [
        str(path.relative_to(ROOT))
        for folder in folders()
        for path in folder.iterdir()
        if path.is_file() and path.suffix not in (".py", ".pyc")
        for package in [".".join(["agentlightning", *folder.relative_to(ROOT).parts])]
        if not any(fnmatch.fnmatch(path.name, row) for row in rows.get(package, []))
    ]
    assert missing == []


def test_no_stray_module_at_the_root() -> None:
    assert sorted(path.name for path in ROOT.glob("*.py")) == sorted(ROOT_FILES)


def test_type_checkers_find_every_room_and_old_path_through_its_link() -> None:
    links = {path.name: path for path in TYPINGS.iterdir()}
    assert sorted(links) == sorted([*ROOT_FILES, "py.typed", *ROOMS, *old_paths()])
    for name, link in links.items():
        target = OLD_PATHS / name if name in old_paths() else ROOT / name
        assert link.is_symlink() and link.resolve() == target
        assert not Path(link.readlink()).is_absolute()


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """Line and target of every import; targets inside the package start with a dot: `.core.log`."""
    package = source.module.split(".") if source.is_package else source.module.split(".")[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                parts = [*[p for p in package if p][: max(0, len([p for p in package if p]) - node.level + 1)], *parts]
            base = ("." if node.level else "") + ".".join(parts)
            for alias in node.names:
                yield node.lineno, f"{base.rstrip('.')}.{alias.name}"


def import_offences(sources: list[Source]) -> list[str]:
    """Imports that go up, that name the package or a room absolutely, or that only POSIX systems can answer."""
    found: list[str] = []
    for source in sources:
        allowed = ROOMS[: ROOMS.index(source.room) + 1] if source.room in ROOMS else ROOMS
        for line, target in imported(source):
            head = target.lstrip(".").split(".")[0]
            where = f"{source.name}:{line} {target}"
            if target.startswith("."):
                if head in ROOMS and head not in allowed:
                    found.append(f"{where}: {source.room} stands below {head}")
            elif head == "agentlightning" or head in ROOMS:
                found.append(f"{where}: rooms import each other relatively")
            elif head == "click" and source.room != "cli":
                found.append(f"{where}: what is below cli/ is called by notebooks too")
        for node in source.tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                found += [f"{source.name}:{node.lineno} {n}: POSIX only" for n in names if n in POSIX_ONLY]
    return found


def cycles(sources: list[Source]) -> list[list[str]]:
    """Circles among the modules, imports inside functions and for type checkers included."""
    modules = {source.module: source for source in sources if source.room}
    edges: dict[str, set[str]] = {}
    for name, source in modules.items():
        edges[name] = set()
        for _, target in imported(source):
            path = target[1:] if target.startswith(".") else None
            while path:
                if path in modules:
                    if path != name:
                        edges[name].add(path)
                    break
                path = path.rpartition(".")[0]
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in done:
            for target in sorted(edges[name]):
                visit(target, [*trail, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])
    return found


def test_rooms_import_downwards_and_relatively() -> None:
    assert import_offences(product()) == []


def test_no_import_circle() -> None:
    assert cycles(product()) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("core/x.py", "from ..projections.store import Store"),
        ("core/log/sqlite/x.py", "from ....cli import main"),
        ("runners/x.py", "def f():\n    from .. import cli"),
        ("cli/x.py", "import agentlightning"),
        ("projections/history/x.py", "import click"),
        ("runners/x.py", "def f():\n    from click import echo"),
        ("cli/x.py", "from agentlightning.core import log"),
        ("cli/x.py", "from core.log.interface import Log"),
        ("core/x.py", "import fcntl"),
    ],
)
def test_a_forbidden_import_is_seen(name: str, line: str) -> None:
    assert len(import_offences([Source(name, line)])) == 1


def test_an_allowed_import_is_let_through_and_a_circle_is_seen() -> None:
    down = Source("runners/a.py", "import os\nfrom ..core.log import Log\nfrom . import b\nfrom .b import c")
    assert import_offences([down]) == []
    back = Source("runners/b.py", "def f() -> None:\n    from .a import g")
    assert cycles([down]) == []
    assert cycles([down, back]) == [["runners.a", "runners.b", "runners.a"]]


def test_no_module_is_loaded_twice_or_under_a_bare_name(tmp_path: Path) -> None:
    program = f"""
        import importlib, os, pkgutil, sys
        import agentlightning
        for found in pkgutil.walk_packages(agentlightning.__path__, "agentlightning."):
            if found.name.split(".")[1] in {ROOMS!r}:
                importlib.import_module(found.name)
        files = {{}}
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and file.startswith({str(ROOT)!r} + os.sep) and ".venv" not in file:
                files.setdefault(os.path.realpath(file), []).append(name)
        bad = [names for names in files.values() if len(names) > 1 or not names[0].startswith("agentlightning")]
        assert not bad, bad
        assert len(files) > 5 or {str(ROOT)!r} not in agentlightning.__file__, files
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
