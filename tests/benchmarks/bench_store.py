"""Durable commands in process: how many a second, their processor time, how long a claim takes, with 1, 16 and 64 writers."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from agentlightning.core.log.interface import Log
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.sqlite import SqliteLog
from agentlightning.core.model.store_interface import LightningStore
from agentlightning.rest.open_store import open_store

from .bench_log import Load
from .table import percentile, show

SECONDS = 4.0
WRITERS = (1, 16, 64)
APPENDS = {1: 2_000, 16: 20_000, 64: 60_000}
"""Writers -> how many appends say what the log alone does with so many in flight."""


HEAD = (
    "log", "writers", "commands/s", "log alone/s", "ratio", "processor us", "claim p50 ms", "claim p99 ms", "longest stall ms",
)  # fmt: skip


class _Run:
    """What the writers of one store have done since `begin`."""

    def __init__(self, store: LightningStore) -> None:
        self.store = store
        self.begin()

    def begin(self) -> None:
        self.commands = 0
        self.claims: list[float] = []
        self.longest_stall = 0.0
        self._answered_at = time.perf_counter()

    def _answered(self) -> float:
        """Count a command; the longest time in which no writer was answered is the longest stall."""
        now = time.perf_counter()
        self.commands += 1
        self.longest_stall = max(self.longest_stall, now - self._answered_at)
        self._answered_at = now
        return now

    async def write(self, until: float) -> None:
        """Enqueue, claim and finish in turn; each is one durable command."""
        index = 0
        while time.perf_counter() < until:
            await self.store.enqueue_rollout({"question": "why is the sky blue?", "index": index})
            began = self._answered()
            claimed = await self.store.dequeue_rollout("Worker-0")
            self.claims.append(self._answered() - began)
            if claimed is not None:
                await self.store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
                self._answered()
            index += 1


async def _measure(run: _Run, writers: int) -> tuple[float, float]:
    """(wall, processor) seconds of `writers` together."""
    await asyncio.gather(*(run.write(time.perf_counter() + 0.5) for _ in range(writers)))
    run.begin()
    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(run.write(began + SECONDS) for _ in range(writers)))
    return time.perf_counter() - began, time.process_time() - used


def _alone(log: Log, in_flight: int) -> float:
    """Appends a second that the log does with nothing on it."""
    with log:
        return APPENDS[in_flight] / Load(log, APPENDS[in_flight]).run(in_flight)


def run() -> None:
    """Print the table for the SQLite log (every command waits for its fsync) and the log in memory."""
    rows: list[list[object]] = []
    for kind in ("sqlite", "memory"):
        for writers in WRITERS:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "log.db"
                alone = _alone(SqliteLog(Path(folder) / "alone.db") if kind == "sqlite" else MemoryLog(), writers)
                store = open_store(f"sqlite:///{path}" if kind == "sqlite" else "memory://")
                did = _Run(store)
                try:
                    wall, processor = asyncio.run(_measure(did, writers))
                finally:
                    store.close()  # type: ignore[attr-defined]
            rate = did.commands / wall
            p50, p99 = (f"{percentile(did.claims, share) * 1e3:.2f}" for share in (0.5, 0.99))
            rows.append(
                [kind, writers, f"{rate:,.0f}", f"{alone:,.0f}", f"{rate / alone:.2f}", f"{processor / did.commands * 1e6:.0f}",
                 p50, p99, f"{did.longest_stall * 1e3:.1f}"]
            )  # fmt: skip
    show("Commands in process", HEAD, rows)
