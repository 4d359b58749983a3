"""The same over HTTP: one client process, 1, 16 and 64 runners that each do the calls of a small rollout."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agentlightning.core.model.span import Span
from agentlightning.rest.client.client import LightningStoreClient

from .table import percentile, show

SECONDS = 5.0
RUNNERS = (1, 16, 64)
SPANS = 5
CALLS = 1 + 2 * SPANS + 1
"""Store methods a rollout: dequeue, five times (next sequence id, add_span), update_attempt."""
REFERENCE_ROLLOUTS = 30.0
REFERENCE_CALLS = 370.0
"""The reference implementation, in memory and not durable, on 2 shared cores: 24 to 36 rollouts/s, 310 to 430 calls/s."""


async def _runner(store: LightningStoreClient, name: str, until: float, claims: list[float]) -> int:
    done = 0
    while time.perf_counter() < until:
        began = time.perf_counter()
        claimed = await store.dequeue_rollout(name)
        claims.append(time.perf_counter() - began)
        if claimed is None:
            raise RuntimeError("the queue ran dry: enqueue more")
        rollout_id, attempt_id = claimed.rollout_id, claimed.attempt.attempt_id
        for number in range(SPANS):
            sequence = await store.get_next_span_sequence_id(rollout_id, attempt_id)
            await store.add_span(
                Span.from_attributes(
                    rollout_id=rollout_id,
                    attempt_id=attempt_id,
                    sequence_id=sequence,
                    name="openai.chat.completion",
                    attributes={"gen_ai.prompt.0.content": "why is the sky blue? " * 10, "number": number},
                    start_time=time.time(),
                    end_time=time.time(),
                )
            )
        await store.update_attempt(rollout_id, attempt_id, status="succeeded")
        done += 1
    return done


async def _measure(url: str, runners: int) -> tuple[float, list[float]]:
    store = LightningStoreClient(url)
    try:
        from agentlightning.core.model.rollout import EnqueueRolloutRequest

        for _ in range(20):
            await store.enqueue_many_rollouts([EnqueueRolloutRequest(input={"question": "?"}) for _ in range(500)])
        claims: list[float] = []
        await asyncio.gather(*(_runner(store, f"W-{n}", time.perf_counter() + 1.0, claims) for n in range(runners)))
        claims.clear()
        began = time.perf_counter()
        done = await asyncio.gather(*(_runner(store, f"W-{n}", began + SECONDS, claims) for n in range(runners)))
        return sum(done) / (time.perf_counter() - began), claims
    finally:
        await store.close()


def run() -> None:
    """Start `agl store` on a file, as a user would, and print the table."""
    rows: list[list[object]] = []
    for runners in RUNNERS:
        with tempfile.TemporaryDirectory() as folder:
            port = _free_port()
            command = [sys.executable, "-m", "agentlightning", "store", "--port", str(port), "--log-level", "WARNING"]
            command += ["--log", f"sqlite:///{Path(folder) / 'log.db'}"]
            with subprocess.Popen(command) as server:
                try:
                    rate, claims = asyncio.run(_measure(f"http://127.0.0.1:{port}", runners))
                finally:
                    server.terminate()
        rows.append(
            [
                runners,
                f"{rate:,.0f}",
                f"{rate / REFERENCE_ROLLOUTS:.1f}",
                f"{rate * CALLS:,.0f}",
                f"{rate * CALLS / REFERENCE_CALLS:.1f}",
                f"{percentile(claims, 0.5) * 1e3:.2f}",
                f"{percentile(claims, 0.99) * 1e3:.2f}",
            ]
        )
    head = ("runners", "rollouts/s", "x reference", "calls/s", "x reference", "claim p50 ms", "claim p99 ms")
    show("Rollouts over HTTP, one client process", head, rows)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
