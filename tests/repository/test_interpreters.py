"""Every interpreter from 3.10 to 3.14 that is on this machine compiles, imports and uses the package."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ..environments import CannotInstall, core_environment, interpreters, python_of, site_packages
from ..sources import ROOT, everything, product

CORE_MEGABYTES = 60

SMOKE = """
    import importlib, pkgutil, sys
    import agentlightning as agl
    assert agl.__file__.startswith(sys.argv[1]), agl.__file__
    for name in agl.__all__:
        getattr(agl, name)
    for found in pkgutil.walk_packages(agl.__path__, "agentlightning."):
        if found.name.split(".")[1] in ("core", "projections", "rest", "runners", "algorithms", "compat", "cli"):
            importlib.import_module(found.name)
    print(agl.__version__)
"""


def environment_of(version: str) -> Path:
    try:
        return core_environment(version)
    except CannotInstall as failure:
        pytest.skip(f"the core dependencies cannot be installed for Python {version} here: {failure}")


@pytest.mark.parametrize("version", interpreters())
def test_every_file_compiles(version: str) -> None:
    program = """
import json, sys
for name, text in json.load(sys.stdin):
    compile(text, name, "exec", dont_inherit=True)
"""
    run = subprocess.run(
        [interpreters()[version], "-I", "-W", "error", "-c", program],
        input=json.dumps([(source.name, source.text) for source in everything()]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("version", interpreters())
def test_every_module_and_export_loads(version: str, tmp_path: Path) -> None:
    environment = environment_of(version)
    # A link under the package's name does what an editable installation does, and leaves the cached environment alone.
    (tmp_path / "agentlightning").symlink_to(ROOT)
    run = subprocess.run(
        [python_of(environment), "-c", textwrap.dedent(SMOKE), str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PYTHONPYCACHEPREFIX": str(environment / "pyc")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_core_installation_stays_under_60_megabytes() -> None:
    """Without compiled caches; the package itself counts too."""
    version = next(v for v, python in interpreters().items() if python == Path(sys.executable))
    packages = site_packages(environment_of(version))
    sizes: dict[str, int] = {}
    for path in packages.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            top = path.relative_to(packages).parts[0]
            sizes[top] = sizes.get(top, 0) + path.stat().st_size
    sizes["agentlightning"] = sum(len(source.text.encode()) for source in product())
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:8]
    total = sum(sizes.values()) / 1e6
    print(f"core installation: {total:.1f} MB", [(name, round(size / 1e6, 1)) for name, size in largest])
    assert total <= CORE_MEGABYTES, largest
