"""Growth: the same workload after 10^4, 10^5 and 10^6 finished rollouts, bytes per rollout, and how long commands take.

`GROWTH=5` ends at 10^5. The log is filled with the records of rollouts that ran one by one, with two spans each, in a hundred
runs; then a store is opened on it, as after any other history.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agentlightning.core.events.run_events import RUN_ID
from agentlightning.core.log.interface import Log, NewRecord
from agentlightning.core.log.open_log import open_log
from agentlightning.core.log.topics import CONTROL, SNAPSHOTS, SPANS
from agentlightning.core.model.span import Span
from agentlightning.core.model.store_interface import LightningStore
from agentlightning.projections.replica.fold_cursor import FoldCursor
from agentlightning.projections.spans.span_log import SpanAdded, encode
from agentlightning.rest.open_store import open_store

from .bench_http import Figures, a_server, load
from .bench_rebuild import History, append_all
from .measured import note
from .table import percentile, show

T = TypeVar("T")
SMALLEST, LARGEST = 4, 6
"""Powers of ten."""
RUNS = 100
SPANS_EACH = 2
RECORDS_EACH = 4
"""Control records of a rollout: enqueued, claimed, observed, ended."""
WRITERS = 16
WARM_SECONDS = 1.0
SECONDS = 4.0
REWARD = 0.5
SERVED = 8_000
"""Rollouts that wait for the runners over HTTP."""
PIECE = 5_000
"""Rollouts that are appended together."""


class Filled(History):
    """A log of finished rollouts that can grow after a store wrote to it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.rollouts = 0
        self.url = url
        self._offset = 0
        self._runs: list[msgspec.Raw] = []
        self._spans = 0

    def open_runs(self) -> None:
        """Runs that all the rollouts belong to."""

        async def record() -> None:
            for number in range(RUNS):
                made = await store.record_run_event("run.opened", None, {"name": f"run {number}", "algorithm": "bench"})
                await store.record_run_event("run.closed", made["run_id"], {"outcome": "succeeded"})
                self._runs.append(msgspec.Raw(msgspec.json.encode({RUN_ID: made["run_id"]})))

        store: Any = open_store(self.url)
        asyncio.run(record())
        store.close()

    def grow(self, rollouts: int) -> str:
        """Append finished rollouts until so many were made here; the id of one in the middle of the new ones."""
        log = open_log(self.url)
        for _ in FoldCursor(log, self.state, self._offset).fold():  # what a store wrote meanwhile
            pass
        self._spans = log.ends(SPANS, 0)[1]
        ids: list[str] = []
        while self.rollouts < rollouts:
            ids.append(self._piece(log, min(PIECE, rollouts - self.rollouts)))
        self._offset = log.ends(CONTROL, 0)[1]
        log.close()
        return ids[len(ids) // 2]

    def _piece(self, log: Log, rollouts: int) -> str:
        """Append so many; the id of the last."""
        control: list[NewRecord] = []
        spans: list[NewRecord] = []
        rollout_id = ""
        for _ in range(rollouts):
            self._spans += SPANS_EACH
            made = self.rollout(self._runs[self.rollouts % RUNS], self._spans, REWARD)
            rollout_id = next(reversed(self.state.rollouts))
            spans += [_span(rollout_id, number, made[2].timestamp_us) for number in range(SPANS_EACH)]
            control += made
            self.rollouts += 1
        append_all(log, spans, SPANS)
        append_all(log, control)
        return rollout_id


_FIELDS = {"rollout_id", "attempt_id", "span_id", "sequence_id"}
"""What a record of a span has beside the body."""
_ATTRIBUTES: dict[str, Any] = {"gen_ai.prompt.0.content": "why is the sky blue? " * 10}
_MADE = Span.from_attributes(name="openai.chat.completion", attributes=_ATTRIBUTES, start_time=1.0, end_time=2.0)
_BODY = msgspec.Raw(_MADE.model_dump_json(exclude=_FIELDS).encode())


def _span(rollout_id: str, number: int, time_us: int) -> NewRecord:
    value = encode(SpanAdded(rollout_id, "at-00000000", f"{number:016x}", _BODY, number + 1, REWARD))
    return NewRecord(rollout_id, value, time_us, (("t", "span"), ("id", "0" * 32)))


@dataclass
class Sized:
    """Everything that was measured at one size. `made` and `written`: bytes of the values of each topic per rollout."""

    size: int
    made: list[float]
    opened: float
    work: Work
    written: list[float]
    page: float
    there: int
    values: list[int]
    files: list[int]
    served: Figures
    took: list[float]


def run() -> None:
    """Grow one log, measure at each size, and print the tables."""
    found: list[Sized] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        filled = Filled(f"sqlite:///{path}")
        filled.open_runs()
        for power in range(SMALLEST, int(os.environ.get("GROWTH", LARGEST)) + 1):
            found.append(_sized(filled, path, 10**power))
    first, last = found[0], found[-1]
    show(
        f"{WRITERS} writers in process on a file, {SPANS_EACH} spans a rollout; the same over HTTP",
        ("rollouts before", "rollouts/s", "of the first", "processor ms/rollout", "of the first", "call p50 ms", "call p99 ms",
         "HTTP rollouts/s", "server ms/rollout"),
        [
            [f"{one.size:,}", *one.work.row(first.work), f"{one.served.rate:,.0f}", f"{one.served.server_ms:.2f}"]
            for one in found
        ],
    )  # fmt: skip
    show(
        "Bytes per rollout",
        ("rollouts", "control", "spans", "snapshots", "log file", "index"),
        [[f"{one.size:,}", *(f"{size / one.there:,.0f}" for size in (*one.values, *one.files))] for one in found],
    )
    show(
        "Seconds",
        ("rollouts", "open", "first page, ms", "agl ps", "agl show ROLLOUT"),
        [
            [f"{one.size:,}", f"{one.opened:.2f}", f"{one.page * 1e3:.1f}", *(f"{took:.2f}" for took in one.took)]
            for one in found
        ],
    )
    # The model of scale takes its costs from the records that were made here, and is checked by what the store wrote.
    whole = last.files[0] / sum(last.values)
    control, spans = (size * whole for size in last.made[:2])
    note(
        "growth",
        records=RECORDS_EACH,
        control_bytes=control,
        span_bytes=spans / SPANS_EACH,
        log_bytes=sum(last.written[:2]) * whole,
        server_ms=last.served.server_ms,
    )


def _sized(filled: Filled, path: Path, size: int) -> Sized:
    missing, before, began = size - filled.rollouts, _values(path), time.perf_counter()
    rollout_id = filled.grow(size)
    print(f"{size:,} rollouts are there after another {time.perf_counter() - began:.0f} s", flush=True)
    made = [(now - then) / missing for then, now in zip(before, _values(path))]
    began = time.perf_counter()
    store: Any = open_store(filled.url)
    opened = time.perf_counter() - began
    asyncio.run(_work(store, WARM_SECONDS))
    before = _values(path)
    work = asyncio.run(_work(store, SECONDS))
    written = [(now - then) / work.rollouts for then, now in zip(before, _values(path))]
    page = asyncio.run(_page(store))
    there = sum(store.report()["rollouts"].values())
    store.close()
    values, files = _values(path), [path.stat().st_size, Path(f"{path}.index").stat().st_size]
    with a_server(sys.executable, ["--log", filled.url]) as server:
        served = load(sys.executable, server, WRITERS, SPANS_EACH, SECONDS, SERVED)
    took = [_seconds(*command, "--log", filled.url) for command in (["ps"], ["show", rollout_id])]
    return Sized(size, made, opened, work, written, page, there, values, files, served, took)


@dataclass
class Work:
    """What the writers did: rollouts, wall and processor seconds, and the seconds of each call."""

    rollouts: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    calls: list[float] = field(default_factory=list[float])

    @property
    def rate(self) -> float:
        """Rollouts per second."""
        return self.rollouts / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor time of the whole process per rollout."""
        return self.cpu / self.rollouts * 1e3

    def row(self, first: Work) -> list[object]:
        """Rates and processor time, each with its ratio to the first, then the latency of a call."""
        calls = (f"{percentile(self.calls, share) * 1e3:.2f}" for share in (0.5, 0.99))
        return [
            f"{self.rate:,.0f}", f"{self.rate / first.rate:.2f}",
            f"{self.cpu_ms:.3f}", f"{self.cpu_ms / first.cpu_ms:.2f}", *calls,
        ]  # fmt: skip


async def _writer(store: LightningStore, name: str, until: float, work: Work) -> None:
    async def timed(call: Awaitable[T]) -> T:
        began = time.perf_counter()
        try:
            return await call
        finally:
            work.calls.append(time.perf_counter() - began)

    while time.perf_counter() < until:
        await timed(store.enqueue_rollout({"question": "why is the sky blue?"}))
        claimed = await timed(store.dequeue_rollout(name))
        assert claimed is not None
        rollout_id, attempt_id = claimed.rollout_id, claimed.attempt.attempt_id
        for _ in range(SPANS_EACH):
            span = Span.from_attributes(
                rollout_id=rollout_id, attempt_id=attempt_id, name="openai.chat.completion",
                attributes=_ATTRIBUTES, start_time=1.0, end_time=2.0,
            )  # fmt: skip
            await timed(store.add_span(span))
        await timed(store.update_attempt(rollout_id, attempt_id, status="succeeded"))
        work.rollouts += 1


async def _work(store: LightningStore, seconds: float) -> Work:
    work = Work()
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(_writer(store, f"W-{n}", began + seconds, work) for n in range(WRITERS)))
    work.seconds, work.cpu = time.perf_counter() - began, time.process_time() - cpu
    return work


async def _page(store: LightningStore) -> float:
    """Seconds of the first page of rollouts, asked a second time."""
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        await store.query_rollouts(limit=20)
        seconds = time.perf_counter() - began
    return seconds


def _seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "agentlightning", *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _values(path: Path) -> list[int]:
    """Bytes of the values of each topic so far."""
    query = "SELECT coalesce(sum(length(value)), 0) FROM {}_0"
    with closing(sqlite3.connect(path)) as db:
        return [int(db.execute(query.format(topic)).fetchone()[0]) for topic in (CONTROL, SPANS, SNAPSHOTS)]
