"""Figures of the last recorded run of each benchmark, in `measured.json`: what scale_model.py computes from.

They are written only where that is asked for (`make bench RECORD=1`), so that a run on any machine leaves the checkout alone.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path

FILE = Path(__file__).with_name("measured.json")


def note(name: str, **figures: float) -> None:
    """Keep the figures of a benchmark with date and machine, in the place of its earlier ones; others of its figures stay."""
    if not os.environ.get("RECORD"):
        return
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    kept[name] = {
        **kept.get(name, {}),
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        **{key: float(f"{value:.4g}") for key, value in figures.items()},
    }
    FILE.write_text(json.dumps(dict(sorted(kept.items())), indent=2) + "\n")


def figures(name: str) -> dict[str, float]:
    """The recorded figures of a benchmark."""
    return {key: value for key, value in json.loads(FILE.read_text())[name].items() if not isinstance(value, str)}
