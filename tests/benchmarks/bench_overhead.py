"""What a rollout costs beside its agent: agents that sleep in 8 slots, on a file, over HTTP and on Kafka, against the ideal."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from agentlightning.core.log.kafka import KafkaAddress
from agentlightning.core.log.kafka.topic_setup import create
from agentlightning.core.model.rollout import EnqueueRolloutRequest
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.open_store import open_store
from agentlightning.runners.agent.loading import run_agent
from agentlightning.runners.stop_events import ThreadingEvent

from .bench_http import a_server
from .brokers import a_broker
from .measured import note
from .table import show

SLOTS = 8
TASK_SECONDS = 0.5
TASKS = 160
AGENT = "import asyncio\n\nasync def nap(task):\n    await asyncio.sleep(float(task))\n    return 1.0\n"
START_SECONDS = 60.0
HEAD = ("store", "processes x slots", "ideal s", "wall s", "ratio", "ms above 500", "runner ms", "store ms")


async def nap(task: Any) -> float:
    """The agent of the runner in this process."""
    await asyncio.sleep(float(task))
    return 1.0


def _seconds(pid: int) -> float:
    """Processor time of a process and of those that it started."""
    root = psutil.Process(pid)
    times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
    return sum(one.user + one.system for one in times)


async def _timed(store: Any, runners: int, others: int | None) -> tuple[float, float, float]:
    """Seconds of wall time for all tasks, and processor time of the process with the runners and of the store's."""
    await _all(store, [0.1] * SLOTS * 3)  # every slot has loaded what it needs
    before = _seconds(runners), _seconds(others) if others is not None else 0.0
    wall = await _all(store, [TASK_SECONDS] * TASKS)
    after = _seconds(runners), _seconds(others) if others is not None else 0.0
    return wall, after[0] - before[0], after[1] - before[1]


async def _all(store: Any, lengths: list[float]) -> float:
    began = time.perf_counter()
    made = await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=length) for length in lengths])
    done = await store.wait_for_rollouts(rollout_ids=[one.rollout_id for one in made], timeout=600)
    wall = time.perf_counter() - began
    assert [one.status for one in done] == ["succeeded"] * len(lengths)
    return wall


async def _alone() -> tuple[float, float, float]:
    """The agents without runner and store: what the machine itself takes beyond the ideal, because other programs run."""

    async def slot() -> None:
        for _ in range(TASKS // SLOTS):
            await nap(TASK_SECONDS)

    before, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(slot() for _ in range(SLOTS)))
    return time.perf_counter() - began, time.process_time() - before, 0.0


async def _in_process(url: str) -> tuple[float, float, float]:
    """The runner and the store in this process."""
    store: Any = await asyncio.to_thread(open_store, url)
    stop = ThreadingEvent()
    work = asyncio.ensure_future(run_agent(nap, store, worker_id=0, event=stop, slots=SLOTS))
    try:
        await store.add_resources({})
        return await _timed(store, os.getpid(), None)
    finally:
        stop.set()
        await work
        await store.end()


@contextmanager
def _runners(url: str, folder: Path, processes: int) -> Generator[int, None, None]:
    """`agl runner` as a user starts it; the id of the process."""
    (folder / "agents.py").write_text(AGENT)
    command = [sys.executable, "-m", "agentlightning", "runner", "agents:nap", "--store", url, "-n", str(processes)]
    with (folder / "runner.out").open("w+b") as out:
        with subprocess.Popen([*command, "--slots", str(SLOTS // processes)], cwd=folder, stdout=out, stderr=out) as runner:
            try:
                yield runner.pid
            finally:
                runner.terminate()


async def _from_here(store: Any, url: str, folder: Path, processes: int, others: int | None) -> tuple[float, float, float]:
    """Runners in processes of their own; the tasks come from this one."""
    with _runners(url, folder, processes) as pid:
        return await _timed(store, pid, others)


def _over_http(folder: Path, processes: int) -> tuple[float, float, float]:
    async def measure(address: str, pid: int) -> tuple[float, float, float]:
        store = LightningStoreClient(address)
        try:
            return await _from_here(store, address, folder, processes, pid)
        finally:
            await store.close()

    with a_server(sys.executable, ["--log", f"sqlite:///{folder / 'log.db'}"]) as (address, pid):
        return asyncio.run(measure(address, pid))


def _on_kafka(folder: Path, broker: str, processes: int) -> tuple[float, float, float]:
    url = f"kafka://{broker}/bench-{os.urandom(4).hex()}"
    asyncio.run(create(KafkaAddress.parse(url), None))

    async def measure() -> tuple[float, float, float]:
        store: Any = await asyncio.to_thread(open_store, url, environment=os.environ)
        try:
            return await _from_here(store, url, folder, processes, os.getpid())
        finally:
            await store.end()

    return asyncio.run(measure())


def _row(name: str, shape: str, measure: Callable[[Path], tuple[float, float, float]]) -> list[object]:
    with tempfile.TemporaryDirectory() as folder:
        wall, runner, store = measure(Path(folder))
    ideal = TASKS * TASK_SECONDS / SLOTS
    more = (wall - ideal) * SLOTS / TASKS
    key = f"{name} {shape}".replace(" ", "_")
    note("overhead", **{f"{key}_ratio": wall / ideal, f"{key}_runner_ms": runner / TASKS * 1e3})
    figures = f"{ideal:.1f}", f"{wall:.2f}", f"{wall / ideal:.3f}", f"{more * 1e3:.1f}"
    return [name, shape, *figures, f"{runner / TASKS * 1e3:.1f}", f"{store / TASKS * 1e3:.1f}"]


def run() -> None:
    """Print the table; milliseconds are of one rollout, the last two of processor time.

    The ideal is tasks x seconds / slots. On Kafka the store is a node in this process, which enqueues and waits.
    """
    rows = [
        _row("none", f"1 x {SLOTS}", lambda folder: asyncio.run(_alone())),
        _row("file", f"1 x {SLOTS}", lambda folder: asyncio.run(_in_process(f"sqlite:///{folder / 'log.db'}"))),
    ]
    shapes = {f"{processes} x {SLOTS // processes}": processes for processes in (1, 2)}
    for shape, processes in shapes.items():
        rows.append(_row("http", shape, partial(_over_http, processes=processes)))
    with a_broker() as broker:
        for shape, processes in shapes.items():
            rows.append(_row("kafka", shape, partial(_on_kafka, broker=broker, processes=processes)))
    show(f"{TASKS} agents that sleep {TASK_SECONDS} s", HEAD, rows)
