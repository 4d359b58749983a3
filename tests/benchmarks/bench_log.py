"""The log alone: durable appends by the number in flight, on the file and in memory, and a scan of the file."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

from agentlightning.core.log.interface import Ack, Log, LogError, NewRecord
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.sqlite import SqliteLog
from agentlightning.core.log.topics import CONTROL

from .table import percentile, show

IN_FLIGHT = ((1, 3_000), (16, 30_000), (64, 100_000), (256, 100_000))
"""(appends in flight, appends)"""
SCANNED = 1_000_000
VALUE_BYTES = 300
HEADERS = (("type", "rollout.enqueued"), ("v", "1"))


class Load:
    """Keeps a number of appends in flight: each answer sends the next one, from the log's own thread."""

    def __init__(self, log: Log, total: int) -> None:
        self.seconds: list[float] = []
        self._log = log
        self._left = total
        self._unanswered = total
        self._finished = threading.Event()
        self._record = NewRecord("", bytes(VALUE_BYTES), 1_700_000_000_000_000, HEADERS)

    def send(self) -> None:
        if self._left == 0:
            return
        self._left -= 1
        began = time.perf_counter()

        def done(outcome: Ack | LogError) -> None:
            assert isinstance(outcome, Ack), outcome
            self.seconds.append(time.perf_counter() - began)
            self._unanswered -= 1
            if self._unanswered == 0:
                self._finished.set()
            self.send()

        self._log.append(CONTROL, 0, [self._record], done)

    def run(self, in_flight: int) -> float:
        """Send everything; return the seconds it took."""
        began = time.perf_counter()
        for _ in range(in_flight):
            self.send()
        self._finished.wait()
        return time.perf_counter() - began


def run() -> list[tuple[str, str]]:
    """Print the table and return its rows: what was measured, and the figure."""
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        with SqliteLog(Path(folder) / "log.db") as log:
            rows += _appends(log, "file")
        with MemoryLog() as log:
            rows += _appends(log, "memory")
        with SqliteLog(Path(folder) / "scan.db") as log:
            rows += _scan(log)
    show("The log alone (300 B records)", ("measured", "figure"), rows)
    return rows


def _appends(log: Log, name: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for in_flight, total in IN_FLIGHT:
        load = Load(log, total)
        seconds = load.run(in_flight)
        p50, p99 = (percentile(load.seconds, share) * 1000 for share in (0.5, 0.99))
        rows.append((f"{name}, {in_flight} in flight", f"{total / seconds:,.0f}/s; p50 {p50:.2f} ms, p99 {p99:.2f} ms"))
    return rows


def _scan(log: SqliteLog) -> list[tuple[str, str]]:
    batch = [NewRecord("", bytes(100), 1_700_000_000_000_000)] * 1000
    began = time.perf_counter()
    load = threading.Semaphore(8)
    for _ in range(SCANNED // len(batch)):
        load.acquire()
        log.append(CONTROL, 0, batch, lambda _: load.release())
    for _ in range(8):
        load.acquire()
    written = time.perf_counter() - began
    began = time.perf_counter()
    offset = 0
    while records := log.read(CONTROL, 0, offset, headers=False):
        offset += len(records)
    assert offset == SCANNED
    return [
        ("file, batches of 1,000 small records", f"{SCANNED / written:,.0f} records/s"),
        ("file, 1 M small records read and checked", f"{time.perf_counter() - began:.2f} s"),
    ]
