"""Start-up: a million control events from the log, part by part, and from a snapshot; memory of rollouts and of spans."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from agentlightning.core.events.codec import decode, record_of
from agentlightning.core.events.payload import ABSENT
from agentlightning.core.events.schema import AnyEvent, Claim, NewRollout, Proposal
from agentlightning.core.fold import apply as fold
from agentlightning.core.fold import commands
from agentlightning.core.fold.state import FOLD_VERSION, Rollout, State
from agentlightning.core.log.interface import Ack, Log, NewRecord
from agentlightning.core.log.open_log import open_log
from agentlightning.core.log.topics import CONTROL
from agentlightning.core.model.rollout import EnqueueRolloutRequest
from agentlightning.core.model.span import Span
from agentlightning.projections.archive.index import ArchiveIndex
from agentlightning.projections.queue.claim_queue import ClaimQueue
from agentlightning.projections.replica.command_context import Delivery
from agentlightning.projections.replica.fold_cursor import control_records
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.rest.open_store import open_store

from .measured import note
from .table import show

EVENTS = 1_000_000
PART = 200_000
"""Events of which decoding, fold and listeners are measured alone."""
MEMORY_ROLLOUTS = 40_000
SPANS = 1_000_000


class History:
    """Makes a plausible control log: rollouts are queued, claimed, observed and finished."""

    def __init__(self, settings: StoreSettings | None = None) -> None:
        self.state = State()
        self._settings = settings if settings is not None else StoreSettings()

    def step(self, event: AnyEvent, command_id: str) -> NewRecord:
        """Fold an event and return its record."""
        proposal = Proposal(
            id=command_id,
            time_us=1_700_000_000_000_000 + self.state.position,
            writer="bench",
            basis=self.state.position - 1,
            basis_print=self.state.fingerprint,
            event=event,
        )
        record = record_of(proposal)
        assert fold.apply(self.state, record.value).accepted
        return record

    def records(self, count: int) -> list[NewRecord]:
        """The next `count` records, about four a rollout."""
        made: list[NewRecord] = []
        if self.state.position == 0:
            made.append(self.open())
        while len(made) < count:
            made += self.rollout()
        return made

    def open(self) -> NewRecord:
        """The first record."""
        settings = self._settings
        return self.step(commands.open_log(settings.window, settings.archive_after, FOLD_VERSION), "open")

    def enqueue(self, name: str, metadata: msgspec.Raw = ABSENT) -> NewRecord:
        """The record of a new rollout."""
        body = msgspec.Raw(b'"' + b"q" * 60 + b'"')
        return self.step(commands.enqueue([NewRollout(commands.rollout_id_of(name), body, metadata=metadata)]), name)

    def rollout(
        self, metadata: msgspec.Raw = ABSENT, watermark: int = 5, reward: float | None = None, steps: int = 4
    ) -> list[NewRecord]:
        """The first `steps` of the four records of one more rollout; its spans lie below `watermark`."""
        name = f"{self.state.position:032x}"
        rollout_id = commands.rollout_id_of(name)
        made = [self.enqueue(name, metadata)]
        claim = commands.claim(self.state, rollout_id, Claim(attempt_id="at-00000000", worker_id="Worker-0"))
        assert claim is not None
        made.append(self.step(claim, name + "c"))
        rollout = self.state.rollouts[rollout_id]
        seen = commands.observe(rollout, rollout.attempts[-1], "running", None)
        assert seen is not None
        made.append(self.step(seen, name + "o"))
        if steps == 4:
            ended = commands.update_attempt(
                rollout, rollout.attempts[-1], status="succeeded", worker_id=None, metadata=None,
                beat_us=None, watermark=watermark, reward=reward, lag_ms=0,
            )  # fmt: skip
            made.append(self.step(ended, name + "e"))
        return made


def append_all(log: Log, records: list[NewRecord], topic: str = CONTROL) -> None:
    """Append to the one partition of a topic of a file, or to that of the control topic of any log, and wait."""
    ready = threading.Event()
    failed: list[object] = []

    def done(result: object) -> None:
        if not isinstance(result, Ack):
            failed.append(result)
        ready.set()

    log.append(topic, 0, records, done)
    ready.wait()
    assert not failed, failed


class Opened(NamedTuple):
    """How a store opened: seconds until it served and until its answers were complete, and processor time until then."""

    seconds: float
    complete: float
    cpu: float
    events: int
    snapshot: int
    """The position of the snapshot that was used; 0: none."""


def open_seconds(url: str) -> Opened:
    """Open and close the store in a process of its own."""
    code = (
        "import sys, time; from agentlightning.rest.open_store import open_store\n"
        "began, cpu = time.perf_counter(), time.process_time()\n"
        "store = open_store(sys.argv[1]); served = time.perf_counter() - began\n"
        "store.engine.backfill is None or store.engine.backfill.done.wait()\n"
        "complete, cpu = time.perf_counter() - began, time.process_time() - cpu\n"
        "r = store.report(); print(served, complete, cpu, r['events'], r['from_snapshot']); store.close()"
    )
    out = subprocess.run([sys.executable, "-c", code, url], check=True, capture_output=True, text=True).stdout.split()
    seconds, complete, cpu = map(float, out[-5:-2])
    return Opened(seconds, complete, cpu, int(out[-2]), int(out[-1]))


def parts(url: str) -> None:
    """Runs in a process of its own: what reading, decoding, folding and the listeners take, each alone."""
    log = open_log(url)
    values: list[bytes] = []
    _timed("reading the file alone", EVENTS, lambda: sum(1 for _ in control_records(log)))
    for record in islice(control_records(log), PART):
        values.append(record.value)
    proposals = [decode(value) for value in values]
    decoding = _timed("decoding alone", PART, lambda: [None for value in values if decode(value) is None])
    folding = _timed("fold alone", PART, lambda: _fold(values, proposals))
    note("rebuild", record_us=decoding + folding)
    archived: list[tuple[Rollout, bytes]] = []
    state = State()
    for value in values:
        archived += fold.apply(state, value).archived
    with tempfile.TemporaryDirectory() as folder:

        def fill() -> None:
            index = ArchiveIndex(f"{folder}/log.db.index", log.log_id)
            index.clear()
            for one in archived:
                index.add([one], 1, b"")
            index.flush()
            index.start()
            index.close()

        _timed(f"index of {len(archived):,} finished rollouts alone, by event", PART, fill)
        size = os.stat(f"{folder}/log.db.index").st_size
    queued = _queued(PART // 4)
    _timed(f"claim queue of {len(queued.queue):,} alone, by rollout", len(queued.queue), lambda: _claim_queue(queued))
    print(f"a finished rollout in the file of the index|{size / len(archived):,.0f} bytes|")
    log.close()


def _timed(what: str, count: int, work: Callable[[], object]) -> float:
    """Print the rate of a part and its processor time, without the collector, as at a start; microseconds each."""
    gc.collect()
    gc.disable()
    began, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    gc.enable()
    print(f"{what}|{count / seconds:,.0f}/s|{cpu / count * 1e6:.2f} us each")
    return cpu / count * 1e6


def _fold(values: list[bytes], proposals: list[Proposal]) -> None:
    state = State()
    for value, proposal in zip(values, proposals):
        fold.apply(state, value, proposal)


def _queued(rollouts: int) -> State:
    """A state in which so many rollouts wait to be claimed."""
    history = History()
    history.open()
    for number in range(rollouts):
        history.enqueue(f"{number:032x}")
    return history.state


def _claim_queue(state: State) -> ClaimQueue:
    claim_queue = ClaimQueue(Delivery())
    claim_queue.load(state)
    return claim_queue


def memory() -> None:
    """Runs in a process of its own: what one rollout takes at each stage of its life, traced."""
    for what, archive_after, steps in (
        ("a queued rollout, in fold and claim queue", 10**6, 1),
        ("an open rollout with its attempt", 10**6, 3),
        ("a finished rollout before it leaves hot state", 10**6, 4),
        ("a finished rollout that has left it", 2, 4),
    ):
        # A window of one record, so that the verdicts of commands, which a log has 100,000 of, are not counted.
        history = History(StoreSettings(window=1, archive_after=archive_after))
        history.open()
        traced: list[int] = []
        tracemalloc.start()
        for _ in range(2):  # what the second half adds: tables have a part of fixed size
            for _ in range(MEMORY_ROLLOUTS):
                name = f"{history.state.position:032x}"
                history.enqueue(name) if steps == 1 else history.rollout(steps=steps)
            kept = _claim_queue(history.state)
            gc.collect()
            traced.append(tracemalloc.get_traced_memory()[0])
            del kept
        tracemalloc.stop()
        print(f"{what}|{(traced[1] - traced[0]) / MEMORY_ROLLOUTS:,.0f} bytes|")


def run() -> None:
    """Print what each part of a rebuild costs, rebuild times, and the memory of rollouts and of a million spans."""
    rows: list[list[object]] = []
    history = History()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'log.db'}"
        log = open_log(url)
        made = 0
        while made < EVENTS:
            records = history.records(20_000)
            append_all(log, records)
            made += len(records)
        log.close()
        del history
        rows.extend(_in_a_process("parts", url))
        rows.append(_row("{:,} events from the log", open_seconds(url)))
        rows.append(_row("the same from the snapshot at {1:,}", open_seconds(url)))
        for index in Path(folder).glob("*.index*"):
            index.unlink()
        rows.append(_row("the same without an index", open_seconds(url)))
    rows.extend(_in_a_process("memory"))
    rows.extend(_span_memory())
    show("Start-up and memory", ("what", "figure", "processor time"), rows)


def _row(what: str, opened: Opened) -> list[object]:
    figure = f"{opened.seconds:.2f} s"
    if opened.complete > opened.seconds + 0.01:
        figure += f", complete after {opened.complete:.2f} s"
    return [what.format(opened.events, opened.snapshot), figure, f"{opened.cpu:.2f} s"]


def _in_a_process(function: str, *arguments: str) -> list[list[object]]:
    """The rows that a function of this module prints."""
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from tests.benchmarks.bench_rebuild import *; {function}(*{arguments!r})"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return [list[object](line.split("|")) for line in out.splitlines() if "|" in line]


def _span_memory() -> list[list[object]]:
    """A million spans through a store on a file; resident memory after each fifth."""
    with tempfile.TemporaryDirectory() as folder:
        return _in_a_process("spans", folder)


def spans(folder: str) -> None:
    """Runs in a process of its own: 2,000 rollouts of 500 spans, finished one after the other."""

    async def body() -> None:
        store = open_store(f"sqlite:///{folder}/log.db")
        began = time.perf_counter()
        for fifth in range(5):
            for _ in range(SPANS // 5 // 500 // 10):
                await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)] * 10)
                await asyncio.gather(*(_fill(store) for _ in range(10)))
            print(f"{(fifth + 1) * SPANS // 5:,} spans: resident memory|{_resident_mb():.0f} MB|")
        rate = SPANS / (time.perf_counter() - began)
        print(f"spans in process (500 a rollout, 50 a call)|{rate:,.0f} spans/s|")
        store.close()  # type: ignore[attr-defined]

    asyncio.run(body())


async def _fill(store: object) -> None:
    from agentlightning.projections.store.store import EventLogStore

    assert isinstance(store, EventLogStore)
    claimed = await store.dequeue_rollout()
    assert claimed is not None
    for _ in range(10):
        batch = [
            Span.from_attributes(
                rollout_id=claimed.rollout_id, attempt_id=claimed.attempt.attempt_id, attributes={"text": "x" * 300}
            )
            for _ in range(50)
        ]
        await store.add_many_spans(batch)
    await store.update_attempt(claimed.rollout_id, "latest", status="succeeded")


def _resident_mb() -> float:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:  # not Linux: the peak is what there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
