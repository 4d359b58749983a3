"""The wheel holds the package and nothing else, and runs where it is installed, far from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ..environments import bare, build_wheel, install, python_of, site_packages
from ..openai_stub import openai_stub
from ..sources import OLD_PATHS, ROOMS, ROOT, product


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel installed, which sees the libraries of this one but not its editable checkout."""
    environment = bare(Path(sys.executable), tmp_path_factory.mktemp("elsewhere") / "venv")
    install(environment, str(wheel))
    import pydantic

    # A .pth file adds the folder and does not read the .pth files in it, so the editable hook stays out.
    libraries = Path(pydantic.__file__).parent.parent
    (site_packages(environment) / "libraries.pth").write_text(f"{libraries}\n", encoding="utf-8")
    return environment


def run(environment: Path, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    program = python_of(environment).parent / command[0]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [program, *command[1:]],
        cwd=environment,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_wheel_holds_every_module_and_data_file_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    old = {path.relative_to(OLD_PATHS).as_posix() for path in OLD_PATHS.rglob("*.py")}
    expected = {f"agentlightning/{name}" for name in {source.name for source in product()} | data | old | {"py.typed"}}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_installed_package_is_the_wheel_and_not_the_checkout(elsewhere: Path) -> None:
    done = run(elsewhere, "python", "-W", "error", "-c", "import agentlightning as agl; print(agl.__file__)")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(elsewhere)


@pytest.mark.parametrize("command", [["agl"], ["agl", "demo"], ["python", "-m", "agentlightning"]])
def test_command_line_starts_from_the_wheel(elsewhere: Path, command: list[str]) -> None:
    done = run(elsewhere, *command, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_demo_runs_from_the_wheel(elsewhere: Path) -> None:
    # The child processes of the demo have to find the installed package too. A stub stands for the model.
    with openai_stub() as stub:
        endpoint = ["--base-url", stub.base_url, "--model", "stub"]
        done = run(elsewhere, "agl", "demo", "--short", "--json", *endpoint, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["held_out"]["best"]["answers"] == 4


def test_type_checkers_follow_old_import_paths_in_the_installed_wheel(elsewhere: Path, tmp_path: Path) -> None:
    for program in (ROOT / "examples" / "getting_started").glob("*.py"):
        (tmp_path / program.name).write_text(program.read_text(encoding="utf-8"), encoding="utf-8")
    wrong = "from agentlightning.types import Nope\nfrom agentlightning.litagent import LitAgent\nLitAgent(1, 2)\n"
    (tmp_path / "wrong.py").write_text(wrong, encoding="utf-8")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}', encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--pythonpath", str(python_of(elsewhere)), "--outputjson"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    # Nothing in the programs of the tutorial; and names are really looked up, not taken for anything.
    assert {Path(one["file"]).name for one in found} == {"wrong.py"}, found
    assert [one["rule"] for one in found] == ["reportAttributeAccessIssue", "reportCallIssue"]
