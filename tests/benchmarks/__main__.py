"""`make bench`: run every benchmark, or those whose names are given, and print their tables."""

from __future__ import annotations

import importlib
import os
import platform
import sys

NAMES = ("log", "store", "http", "rebuild", "pages", "growth", "kafka", "runners", "start", "overhead")


def main() -> None:
    """Run the benchmarks one after the other; nothing else should run on the machine."""
    print(f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores")
    for name in sys.argv[1:] or NAMES:
        importlib.import_module(f"tests.benchmarks.bench_{name}").run()


main()
