"""Reading a large store: pages of rollouts, statistics, and `agl ps`, over a log of 200,000 finished rollouts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agentlightning.core.log.open_log import open_log
from agentlightning.rest.open_store import open_store

from .bench_rebuild import History, append_all
from .table import show

ROLLOUTS = 200_000
QUERIES: list[tuple[str, dict[str, Any]]] = [
    ("the first 20", {"limit": 20}),
    ("20 after 100,000", {"limit": 20, "offset": 100_000}),
    ("the newest 20", {"limit": 20, "sort_by": "start_time", "sort_order": "desc"}),
    ("20 that succeeded, by their end", {"limit": 20, "status_in": ["succeeded"], "sort_by": "end_time"}),
    ("20 by mode, descending", {"limit": 20, "sort_by": "mode", "sort_order": "desc"}),
    ("20 with a part in their id", {"limit": 20, "rollout_id_contains": "abc"}),
    ("20 that are queued", {"limit": 20, "status_in": ["queuing"]}),
]


def run() -> None:
    """Print what each question takes; the first of each kind is left out, which fills caches."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'log.db'}"
        log, history, made = open_log(url), History(), 0
        while made < 4 * ROLLOUTS:
            records = history.records(20_000)
            append_all(log, records)
            made += len(records)
        log.close()
        opened: Any = open_store(url)
        rows = asyncio.run(_ask(opened))
        opened.close()
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "agentlightning", "ps", "--log", url], check=True, capture_output=True)
        rows.append(["agl ps, a process", f"{(time.perf_counter() - began) * 1000:,.0f} ms"])
    show(f"Reading {ROLLOUTS:,} finished rollouts", ("question", "time"), rows)


async def _ask(opened: Any) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, query in QUERIES:
        await opened.query_rollouts(**query)
        began = time.perf_counter()
        await opened.query_rollouts(**query)
        rows.append([name, f"{(time.perf_counter() - began) * 1000:,.1f} ms"])
    return rows
