"""`import agentlightning` is quick and quiet, and its exports are pinned."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import agentlightning as agl

from ..sources import ROOMS, ROOT, product
from .test_layout import tomllib

IMPORT_SECONDS = 0.4
HEAVY = (
    "agentops",
    "aiohttp",
    "aiokafka",
    "openai",
    "opentelemetry.instrumentation",
    "starlette",
    "uvicorn",
    "xllamacpp",
)


def fresh(program: str, cwd: Path, **env: str) -> str:
    """What the program prints in a new interpreter; its errors are this test's errors."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


def test_import_takes_at_most_400_milliseconds(tmp_path: Path) -> None:
    program = "import time; t = time.perf_counter(); import agentlightning; print(time.perf_counter() - t)"
    # The best of several: the promise is about this package, not about what else the machine is doing.
    best = min(float(fresh(program, tmp_path)) for _ in range(5))
    assert best <= IMPORT_SECONDS


def test_import_opens_no_socket_and_imports_no_extra(tmp_path: Path) -> None:
    program = f"""
        import sys
        seen = []
        sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("socket.") else None)
        import agentlightning
        heavy = [m for m in sys.modules if m.startswith({HEAVY!r})]
        assert not seen, seen
        assert not heavy, heavy
        import socket
        socket.socket().close()
        assert seen, "the hook does not see sockets"
    """
    fresh(program, tmp_path)


def test_using_every_export_opens_no_socket(tmp_path: Path) -> None:
    program = """
        import sys
        seen = []
        calls = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
        sys.addaudithook(lambda event, args: seen.append((event, args)) if event in calls else None)
        import agentlightning
        for name in agentlightning.__all__:
            getattr(agentlightning, name)
        assert not seen, seen
    """
    fresh(program, tmp_path)


def test_exports_are_sorted_unique_and_real() -> None:
    assert agl.__all__ == sorted(set(agl.__all__))
    assert sum(len(names) for names in agl._EXPORTS.values()) == len(agl.__all__)
    assert list(agl._EXPORTS) == sorted(agl._EXPORTS)
    assert all(list(names) == sorted(names) for names in agl._EXPORTS.values())
    assert [name for name in agl.__all__ if getattr(agl, name) is None] == []
    assert set(agl.__all__) <= set(dir(agl))
    # A sub-package of the same name would replace the export as soon as it is imported.
    assert not set(agl.__all__) & set(ROOMS)


def test_type_checkers_see_the_exports_that_run() -> None:
    face = next(source for source in product() if source.name == "__init__.py")
    block = next(node for node in face.tree.body if isinstance(node, ast.If))
    assert isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
    typed: dict[str, list[str]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        assert all(alias.asname == alias.name for alias in node.names), "write `X as X`: it marks a re-export"
        typed.setdefault(node.module, []).extend(alias.name for alias in node.names)
    assert {module: tuple(sorted(names)) for module, names in typed.items()} == agl._EXPORTS


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(agl, "Nope")


def test_version_is_the_one_in_the_metadata() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert agl.__version__ == metadata["version"]


def test_first_import_names_the_other_distribution_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "site-packages"
    (folder / "agentlightning_eventlog-0.1.0.dist-info").mkdir(parents=True)
    program = "import warnings; warnings.simplefilter('always'); import agentlightning; import agentlightning"
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert fresh(program, tmp_path, PYTHONPATH=path) == ""
    (folder / "agentlightning-0.3.0.dist-info").mkdir()
    said = fresh(program, tmp_path, PYTHONPATH=path)
    assert said.count("UserWarning") == 1
    assert "'agentlightning' is installed beside 'agentlightning-eventlog'" in said


def test_no_module_of_the_standard_library_is_a_name_of_the_package() -> None:
    for name in ("os", "sys", "warnings", "import_module", "ModuleSpec"):
        assert not hasattr(agl, name)
    assert {name for name in dir(agl) if not name.startswith("__")} == set(agl.__all__)
    assert agl.__doc__ is not None and "agl.Trainer" in agl.__doc__ and "_EXPORTS" not in agl.__doc__
