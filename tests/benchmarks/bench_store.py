"""Durable commands in process: how many a second, how long a claim takes, with 1, 16 and 64 writers."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from agentlightning.core.model.store_interface import LightningStore
from agentlightning.rest.open_store import open_store

from .table import percentile, show

SECONDS = 4.0
WRITERS = (1, 16, 64)


async def _writer(store: LightningStore, until: float, claims: list[float]) -> int:
    """Enqueue, claim and finish in turn; each is one durable command."""
    commands = 0
    while time.perf_counter() < until:
        await store.enqueue_rollout({"question": "why is the sky blue?", "index": commands})
        began = time.perf_counter()
        claimed = await store.dequeue_rollout("Worker-0")
        claims.append(time.perf_counter() - began)
        commands += 2
        if claimed is not None:
            await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
            commands += 1
    return commands


async def _measure(store: LightningStore, writers: int) -> tuple[float, list[float]]:
    claims: list[float] = []
    await asyncio.gather(*(_writer(store, time.perf_counter() + 0.5, claims) for _ in range(writers)))
    claims.clear()
    began = time.perf_counter()
    done = await asyncio.gather(*(_writer(store, began + SECONDS, claims) for _ in range(writers)))
    return sum(done) / (time.perf_counter() - began), claims


def run() -> None:
    """Print the table for the SQLite log (every command waits for its fsync) and the log in memory."""
    rows: list[list[object]] = []
    for kind in ("sqlite", "memory"):
        for writers in WRITERS:
            with tempfile.TemporaryDirectory() as folder:
                url = f"sqlite:///{Path(folder) / 'log.db'}" if kind == "sqlite" else "memory://"
                store = open_store(url)
                try:
                    rate, claims = asyncio.run(_measure(store, writers))
                finally:
                    store.close()  # type: ignore[attr-defined]
            rows.append(
                [kind, writers, f"{rate:,.0f}", f"{percentile(claims, 0.5) * 1e3:.2f}", f"{percentile(claims, 0.99) * 1e3:.2f}"]
            )
    show("Commands in process", ("log", "writers", "commands/s", "claim p50 ms", "claim p99 ms"), rows)
