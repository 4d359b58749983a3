"""Writes what type checkers read of the old import paths: ``python -m tests.make_stubs`` in the checkout.

These are modules and no ``.pyi`` files: strict checkers complain of a stub without a module. Nothing runs them, for the
package's own finder is asked first.
"""

from __future__ import annotations

from agentlightning.compat.old_paths import OLD_PATHS, names_of

from .sources import ROOT

STUBS = ROOT / "typings" / "agentlightning"
"""Between the links to the rooms; `package-dir` in pyproject.toml puts each folder into the package."""


def stubs() -> dict[str, str]:
    """Path below the package's folder, and text."""
    files: dict[str, str] = {}
    parents = {path.rpartition(".")[0] for path in OLD_PATHS}
    for path in OLD_PATHS:
        lines = [f'"""What agentlightning.{path} was; written from compat/old_paths.py by tests/make_stubs.py."""', ""]
        for name, (module, now) in names_of(path).items():
            lines.append(f"from agentlightning.{module} import {now} as {name}")
        file = path.replace(".", "/") + ("" if "." in path and path not in parents else "/__init__") + ".py"
        files[file] = "\n".join(lines) + "\n"
    return files


def main() -> None:
    """Write them all; what the table no longer has is removed."""
    wanted = stubs()
    for folder in [path for path in STUBS.iterdir() if path.is_dir() and not path.is_symlink()]:
        for old in folder.rglob("*.py"):
            if old.relative_to(STUBS).as_posix() not in wanted:
                old.unlink()
    for file, text in wanted.items():
        (STUBS / file).parent.mkdir(exist_ok=True)
        (STUBS / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
