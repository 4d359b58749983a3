"""The same over HTTP: one client process, 1, 16 and 64 runners that each do the calls of a small rollout."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from agentlightning.core.model.rollout import EnqueueRolloutRequest
from agentlightning.core.model.span import Span
from agentlightning.rest.client.client import LightningStoreClient

from .table import percentile, show

SECONDS = 5.0
WARM_UP_SECONDS = 1.0
RUNNERS = (1, 16, 64)
QUEUED = 15_000
"""Rollouts that are there before the runners begin; at 64 runners they have to last for six seconds."""
SPANS = 5
CALLS = 1 + 2 * SPANS + 1
"""Store methods a rollout: dequeue, five times (next sequence id, add_span), update_attempt."""
REFERENCE_ROLLOUTS = 30.0
REFERENCE_CALLS = 370.0
"""The reference implementation, in memory and not durable, on 2 shared cores: 24 to 36 rollouts/s, 310 to 430 calls/s."""


@dataclass
class Figures:
    """What one run of `SECONDS` showed. Processor time is in seconds, of all threads of a process, in user and kernel mode."""

    rollouts: int = 0
    seconds: float = 0.0
    server_cpu: float = 0.0
    client_cpu: float = 0.0
    claims: list[float] = field(default_factory=list[float])
    spans: list[float] = field(default_factory=list[float])
    """How long each add_span took, in seconds."""


async def _runner(store: LightningStoreClient, name: str, until: float, figures: Figures) -> None:
    while time.perf_counter() < until:
        began = time.perf_counter()
        claimed = await store.dequeue_rollout(name)
        figures.claims.append(time.perf_counter() - began)
        if claimed is None:
            raise RuntimeError("the queue ran dry: enqueue more")
        rollout_id, attempt_id = claimed.rollout_id, claimed.attempt.attempt_id
        for number in range(SPANS):
            sequence = await store.get_next_span_sequence_id(rollout_id, attempt_id)
            span = Span.from_attributes(
                rollout_id=rollout_id,
                attempt_id=attempt_id,
                sequence_id=sequence,
                name="openai.chat.completion",
                attributes={"gen_ai.prompt.0.content": "why is the sky blue? " * 10, "number": number},
                start_time=time.time(),
                end_time=time.time(),
            )
            began = time.perf_counter()
            await store.add_span(span)
            figures.spans.append(time.perf_counter() - began)
        await store.update_attempt(rollout_id, attempt_id, status="succeeded")
        figures.rollouts += 1


async def _measure(url: str, server: psutil.Process, runners: int) -> Figures:
    store = LightningStoreClient(url)
    try:
        for _ in range(QUEUED // 500):
            await store.enqueue_many_rollouts([EnqueueRolloutRequest(input={"question": "?"}) for _ in range(500)])
        for seconds in (WARM_UP_SECONDS, SECONDS):
            figures = Figures()
            server_cpu, client_cpu, began = _cpu(server), time.process_time(), time.perf_counter()
            await asyncio.gather(*(_runner(store, f"W-{n}", began + seconds, figures) for n in range(runners)))
            figures.seconds = time.perf_counter() - began
            figures.server_cpu = _cpu(server) - server_cpu
            figures.client_cpu = time.process_time() - client_cpu
        return figures
    finally:
        await store.close()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def run() -> None:
    """Start `agl store` on a file, as a user would, and print the tables."""
    rates: list[list[object]] = []
    costs: list[list[object]] = []
    for runners in RUNNERS:
        with tempfile.TemporaryDirectory() as folder:
            port = _free_port()
            command = [sys.executable, "-m", "agentlightning", "store", "--port", str(port), "--log-level", "WARNING"]
            command += ["--log", f"sqlite:///{Path(folder) / 'log.db'}"]
            with subprocess.Popen(command) as server:
                try:
                    found = asyncio.run(_measure(f"http://127.0.0.1:{port}", psutil.Process(server.pid), runners))
                finally:
                    server.terminate()
        rate = found.rollouts / found.seconds
        rates.append(
            [
                runners,
                f"{rate:,.0f}",
                f"{rate / REFERENCE_ROLLOUTS:.1f}",
                f"{rate * CALLS:,.0f}",
                f"{rate * CALLS / REFERENCE_CALLS:.1f}",
                *(f"{percentile(found.claims, share) * 1e3:.2f}" for share in (0.5, 0.99)),
                *(f"{percentile(found.spans, share) * 1e3:.2f}" for share in (0.5, 0.99)),
            ]
        )
        cpu = (found.server_cpu / found.rollouts, found.client_cpu / found.rollouts)
        costs.append([runners, *(f"{one * 1e3:.2f}" for one in cpu), *(f"{one / CALLS * 1e6:.0f}" for one in cpu)])
    show(
        "Rollouts over HTTP, one client process",
        ("runners", "rollouts/s", "x reference", "calls/s", "x reference",
         "claim p50 ms", "claim p99 ms", "add_span p50 ms", "add_span p99 ms"),
        rates,
    )  # fmt: skip
    show(
        "Processor time of the same",
        ("runners", "server ms/rollout", "client ms/rollout", "server us/call", "client us/call"),
        costs,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
