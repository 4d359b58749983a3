"""The rows of the lock, with their hashes, that an image needs: constraints.txt also locks tests and the demo's model.

    python locked.py constraints.txt setuptools             # the rows of these packages
    python locked.py constraints.txt --for some.whl         # of everything that this wheel depends on

pip decides what a wheel needs on this interpreter; nothing is installed here, and what is installed afterwards is
checked against the hashes that are printed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def canonical(name: str) -> str:
    """One spelling for a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def rows_by_name(lock: str) -> dict[str, list[str]]:
    """Package -> its rows, each with its hashes. There are several where versions depend on the interpreter."""
    found: dict[str, list[str]] = {}
    for row in re.split(r"\n(?=[A-Za-z0-9])", lock):
        match = re.match(r"([A-Za-z0-9][\w.-]*)(\[[^]]*\])?==", row)
        if match is not None:
            found.setdefault(canonical(match.group(1)), []).append(row.rstrip())
    return found


def needed(rows: dict[str, list[str]], wheel: str) -> list[str]:
    """The packages that pip would install for `wheel`, itself left out, with the versions of the lock.

    Raises `subprocess.CalledProcessError` where pip finds no way; what it said is on standard error by then.
    """
    pins = "".join(row.split("\\")[0].strip() + "\n" for several in rows.values() for row in several)
    # Constraints may not name extras.
    pins = re.sub(r"\[[^]]*\]==", "==", pins)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pins.txt").write_text(pins, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
        command += ["--ignore-installed", "--only-binary", ":all:", "--report", "-"]
        command += ["--constraint", f"{folder}/pins.txt", wheel]
        report: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    names = [canonical(one["metadata"]["name"]) for one in report["install"] if not one.get("is_direct")]
    return sorted(names)


def main(arguments: list[str]) -> int:
    """Print the rows; returns the exit code, 1 where the lock lacks one."""
    rows = rows_by_name(Path(arguments[0]).read_text(encoding="utf-8"))
    names = needed(rows, arguments[2]) if arguments[1] == "--for" else [canonical(name) for name in arguments[1:]]
    missing = [name for name in names if name not in rows]
    if missing:
        print(f"{arguments[0]} does not lock {', '.join(missing)}", file=sys.stderr)
        return 1
    print("\n".join(row for name in names for row in rows[name]))
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
