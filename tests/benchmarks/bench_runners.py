"""Runner processes in one consumer group on Kafka: wall time against the ideal, waits in the queue against a FIFO queue."""

from __future__ import annotations

import asyncio
import heapq
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from agentlightning.core.model.rollout import RolloutConfig

from .measured import note
from .table import percentile, show

TASKS = 200
TASK_SECONDS = 0.5
PROCESSES = (1, 2, 4, 8)
SERVERS = 4
ARRIVALS = 240
LOAD = 0.8
RETRIED = RolloutConfig(unresponsive_seconds=2, max_attempts=3, retry_condition=["unresponsive"])


def fifo_waits(arrivals: list[tuple[float, float]], servers: int) -> list[float]:
    """Seconds that each (arrival, length) waits in one queue in front of so many servers that never pause."""
    free = [0.0] * servers
    waits: list[float] = []
    for arrival, length in sorted(arrivals):
        begin = max(arrival, heapq.heappop(free))
        waits.append(begin - arrival)
        heapq.heappush(free, begin + length)
    return waits


async def _ready(store: Any, crew: Any, processes: int) -> None:
    """Start them, and let each do something first: what is measured is work, not the loading of modules."""
    await store.add_resources({"prompt": "x"})
    await asyncio.to_thread(crew.start, processes)
    await _all(store, [0.5] * 3 * processes)


async def _all(store: Any, lengths: list[float], during: Callable[[], Any] | None = None) -> float:
    """Enqueue all at once; seconds until all have ended."""
    began = time.perf_counter()
    made = [(await store.enqueue_rollout(length, config=RETRIED)).rollout_id for length in lengths]
    extra = asyncio.ensure_future(during()) if during is not None else None
    done = await store.wait_for_rollouts(made, timeout=600)
    wall = time.perf_counter() - began
    assert [one.status for one in done] == ["succeeded"] * len(lengths)
    if extra is not None:
        await extra
    return wall


def _scale(url: str, processes: int, kept: dict[str, float]) -> list[object]:
    from ..system.kafka.crew import crew_on

    async def measure() -> float:
        await _ready(store, crew, processes)
        watch.attempts.clear()
        return await _all(store, [TASK_SECONDS] * TASKS)

    with tempfile.TemporaryDirectory() as folder, crew_on(url, Path(folder)) as (store, crew, watch):
        wall = asyncio.run(measure())
        ideal = TASKS * TASK_SECONDS / processes
        busy = sum(one.ended - one.claimed for one in watch.attempts) / len(watch.attempts)
        lost = watch.lost / watch.claims
        idle = max(watch.idle(), default=0.0)
    kept |= {f"rollouts_{processes}": TASKS / wall, f"attempt_ms_{processes}": busy * 1e3}
    shown = (f"{ideal:.1f}", f"{wall:.1f}", f"{wall / ideal:.3f}", f"{busy * 1e3:.0f}", f"{lost:.1%}", f"{idle * 1e3:.0f}")
    return [processes, *shown]


def _churn(url: str) -> list[object]:
    """One process comes after a third of the ideal time, another is killed after two thirds of it."""
    from ..system.kafka.crew import crew_on

    total, at = TASKS * TASK_SECONDS, TASKS * TASK_SECONDS / SERVERS / 3

    async def measure() -> float:
        async def change() -> None:
            began = time.perf_counter()
            await asyncio.to_thread(crew.start)
            moments.append(time.perf_counter() - began)
            await asyncio.sleep(at)
            crew.processes[0].kill()
            moments.append(time.perf_counter() - began)

        async def later() -> None:
            await asyncio.sleep(at)
            await change()

        await _ready(store, crew, SERVERS)
        return await _all(store, [TASK_SECONDS] * TASKS, later)

    moments: list[float] = []
    with tempfile.TemporaryDirectory() as folder, crew_on(url, Path(folder)) as (store, crew, watch):
        wall = asyncio.run(measure())
        twice = sum(one.status == "attempt.unresponsive" for one in watch.attempts)
    added, killed = moments
    ideal = (total - (killed - added)) / SERVERS
    return [f"{SERVERS} + 1 - 1", f"{ideal:.1f}", f"{wall:.1f}", f"{wall / ideal:.3f}", f"{twice}"]


def _queue(url: str) -> list[object]:
    from ..system.kafka.crew import crew_on

    dice = random.Random(4)
    lengths = [min(max(dice.lognormvariate(-1.0, 0.8), 0.05), 3.0) for _ in range(ARRIVALS)]
    gap = sum(lengths) / len(lengths) / SERVERS / LOAD

    async def measure() -> None:
        await _ready(store, crew, SERVERS)
        watch.attempts.clear()
        watch.claims = watch.lost = 0
        made: list[str] = []
        due = time.perf_counter()
        for length in lengths:
            await asyncio.sleep(max(due - time.perf_counter(), 0.0))
            made.append((await store.enqueue_rollout(length)).rollout_id)
            due += dice.expovariate(1 / gap)
        await store.wait_for_rollouts(made, timeout=120)

    with tempfile.TemporaryDirectory() as folder, crew_on(url, Path(folder)) as (store, crew, watch):
        asyncio.run(measure())
        ideal = fifo_waits([(one.queued, one.ended - one.claimed) for one in watch.attempts], SERVERS)
        waits, idle, lost = watch.waits(), max(watch.idle(), default=0.0), watch.lost / watch.claims
    p50, p99 = percentile(waits, 0.5), percentile(waits, 0.99)
    best = percentile(ideal, 0.99)
    return [SERVERS, f"{p50:.3f}", f"{percentile(ideal, 0.5):.3f}", f"{p99:.3f}", f"{best:.3f}", f"{p99 / best:.3f}",
            f"{lost:.1%}", f"{idle * 1e3:.0f}"]  # fmt: skip


def run() -> None:
    """Print the tables; needs a Kafka, as the tests in tests/kafka do."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "deploy" / "kafka-local"))
    from ..system.kafka.broker import open_broker

    with ExitStack() as stack:
        broker = open_broker(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        print(f"Broker: {broker.kind}")
        url = f"kafka://{broker.bootstrap}/bench-{os.urandom(4).hex()}"
        kept = {"task_ms": TASK_SECONDS * 1e3}
        show(
            f"{TASKS} tasks of {TASK_SECONDS} s",
            ("processes", "ideal s", "wall s", "ratio", "attempt ms", "refused claims", "longest idle ms"),
            [_scale(f"{url}-{processes}", processes, kept) for processes in PROCESSES],
        )
        note("runners", **kept)
        head = ("processes", "ideal s", "wall s", "ratio", "attempts lost")
        show("The same, one process added and one killed", head, [_churn(f"{url}-churn")])
        show(
            f"Mixed lengths at {LOAD:.0%} load, seconds in the queue",
            ("processes", "p50", "FIFO p50", "p99", "FIFO p99", "ratio", "refused claims", "longest idle ms"),
            [_queue(f"{url}-queue")],
        )
