"""Small virtual environments for the tests that need another interpreter or another installation."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from .repository.test_layout import tomllib
from .sources import ROOT, product

CACHE = ROOT / ".cache" / "environments"
OLDEST, NEWEST = (3, 10), (3, 14)


class CannotInstall(Exception):
    """The installer failed, most likely for want of a network or of a wheel; the text is its last lines."""


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_packages(environment: Path) -> Path:
    return next(environment.glob("[Ll]ib/python*/site-packages"), environment / "Lib" / "site-packages")


@cache
def interpreters() -> dict[str, Path]:
    """Minor version, such as `3.12`, to an interpreter of it that is on this machine and runs."""
    names = ["python3", *(f"python3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1))]
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    folders += sorted(folder / "bin" for folder in pyenv.glob("3.*"))
    found = {".".join(map(str, sys.version_info[:2])): Path(sys.executable)}
    for candidate in [folder / name for folder in folders for name in names]:
        if candidate.is_file():
            version = _version(candidate)
            if version and OLDEST <= tuple(map(int, version.split("."))) <= NEWEST:
                found.setdefault(version, candidate)
    return dict(sorted(found.items(), key=lambda item: int(item[0].split(".")[1])))


def _version(python: Path) -> str | None:
    """None for what does not run: pyenv leaves a shim on PATH for each version that is not selected."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        run = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def core_lock() -> str:
    """The rows of constraints.txt, with their hashes, that a plain installation without extras needs."""
    rows = re.split(r"\n(?=[a-z0-9])", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    locked: dict[str, list[str]] = {}
    for row in rows[1:]:
        locked.setdefault(re.split(r"[=\[ ]", row)[0], []).append(row)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names: set[str] = set()

    def add(wanted: Iterable[str]) -> None:
        for requirement in wanted:
            name = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()
            if name in locked and name not in names:
                names.add(name)
                try:
                    needs = requires(name) or []
                except PackageNotFoundError:  # locked for another version of Python, all of which are leaves
                    needs = []
                # zstd support is the one extra in use; markers for versions and systems stay for the installer.
                add(need for need in needs if "extra" not in need or (name == "aiokafka" and "zstd" in need))

    add(project["dependencies"])
    return "\n".join(row for name in sorted(names) for row in locked[name]) + "\n"


def install(environment: Path, *arguments: str) -> None:
    """Installs without looking at dependencies, with uv where it is there; raises CannotInstall."""
    uv = shutil.which("uv")
    python = str(python_of(environment))
    if uv:
        command = [uv, "pip", "install", "--python", python]
    else:
        command = [sys.executable, "-m", "pip", "--python", python, "install"]
        command += ["--disable-pip-version-check", "--no-compile"]
    command += ["--quiet", "--no-deps", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if run.returncode:
        raise CannotInstall("\n".join(run.stderr.strip().splitlines()[-3:]))


def bare(interpreter: Path, environment: Path) -> Path:
    """An environment without any package, pip included."""
    command = [interpreter, "-m", "venv", "--without-pip", "--clear", environment]
    subprocess.run(command, check=True, capture_output=True)
    return environment


def core_environment(version: str) -> Path:
    """An environment of that interpreter with the core dependencies and nothing else; kept under .cache/."""
    lock = core_lock()
    key = hashlib.sha256(f"{interpreters()[version]}\n{lock}".encode()).hexdigest()[:12]
    environment = CACHE / f"{version}-{key}"
    with one_process_at_a_time(CACHE / f"{version}.lock"):
        if not (environment / "ready").exists():
            for old in CACHE.glob(f"{version}-*"):
                shutil.rmtree(old, ignore_errors=True)
            bare(interpreters()[version], environment)
            (environment / "core.txt").write_text(lock, encoding="utf-8")
            install(environment, "--require-hashes", "-r", str(environment / "core.txt"))
            (environment / "ready").touch()
    return environment


def overlay(rows: Path) -> Path:
    """An environment of this interpreter with these packages over all that it has already; kept under .cache/."""
    here = Path(sysconfig.get_paths()["purelib"])
    key = hashlib.sha256(f"{sys.executable}\n{here}\n{rows.read_text(encoding='utf-8')}".encode()).hexdigest()[:12]
    environment = CACHE / f"{rows.stem}-{key}"
    with one_process_at_a_time(CACHE / f"{rows.stem}.lock"):
        if not (environment / "ready").exists():
            for old in CACHE.glob(f"{rows.stem}-*"):
                shutil.rmtree(old, ignore_errors=True)
            bare(Path(sys.executable), environment)
            install(environment, "--require-hashes", "-r", str(rows))
            # A line of a .pth file comes after the packages beside it. Editable installations are not followed.
            (site_packages(environment) / "below.pth").write_text(f"{here}\n", encoding="utf-8")
            (environment / "ready").touch()
    return environment


@contextmanager
def one_process_at_a_time(path: Path) -> Iterator[None]:
    """Two processes of one test run want the same environment; the second finds it made. The system frees a dead one's lock."""
    if os.name == "nt":
        yield
        return
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, built in a copy so that no build folder is left behind here."""
    copy = folder / "source"
    for source in product():
        (copy / source.name).parent.mkdir(parents=True, exist_ok=True)
    for path in [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", "py.typed")]:
        shutil.copy2(path, copy / path.name)
    for room in {source.name.split("/")[0] for source in product()}:
        if (ROOT / room).is_dir():
            shutil.copytree(ROOT / room, copy / room, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / room, copy / room)
    program = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return folder / run.stdout.strip().splitlines()[-1]
