"""A runner that only claims and finishes, as a process of its own: `python -m tests.benchmarks.racer STORE NAME GATE`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agentlightning.rest.client.client import LightningStoreClient


async def main(endpoint: str, name: str, gate: Path) -> None:
    """Say that it is ready, wait for the gate to open, then work until the queue is empty."""
    client = LightningStoreClient(endpoint)
    await client.query_workers(limit=1)
    gate.with_name(f"{gate.name}.{name}").touch()
    while not gate.exists():
        await asyncio.sleep(0.01)
    while (claimed := await client.dequeue_rollout(name, wait_seconds=0.5)) is not None:
        await client.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
    await client.close()


asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
