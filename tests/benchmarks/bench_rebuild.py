"""Start-up: fold and decode, a million control events from the log and from a snapshot; memory over a million spans."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec

from agentlightning.core.events.codec import record_of
from agentlightning.core.events.payload import ABSENT
from agentlightning.core.events.schema import AnyEvent, Claim, NewRollout, Proposal
from agentlightning.core.fold import apply as fold
from agentlightning.core.fold import commands
from agentlightning.core.fold.state import FOLD_VERSION, State
from agentlightning.core.log.interface import Ack, Log, NewRecord
from agentlightning.core.log.open_log import open_log
from agentlightning.core.log.topics import CONTROL
from agentlightning.core.model.rollout import EnqueueRolloutRequest
from agentlightning.core.model.span import Span
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.rest.open_store import open_store

from .table import show

EVENTS = 1_000_000
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
            settings = self._settings
            made.append(self.step(commands.open_log(settings.window, settings.archive_after, FOLD_VERSION), "open"))
        while len(made) < count:
            made += self.rollout()
        return made

    def rollout(
        self, metadata: msgspec.Raw = ABSENT, watermark: int = 5, reward: float | None = None
    ) -> list[NewRecord]:
        """The records of one more rollout; its spans lie below `watermark`."""
        name = f"{self.state.position:032x}"
        rollout_id = commands.rollout_id_of(name)
        body = msgspec.Raw(b'"' + b"q" * 60 + b'"')
        made = [self.step(commands.enqueue([NewRollout(rollout_id, body, metadata=metadata)]), name)]
        claim = commands.claim(self.state, rollout_id, Claim(attempt_id="at-00000000", worker_id="Worker-0"))
        assert claim is not None
        made.append(self.step(claim, name + "c"))
        rollout = self.state.rollouts[rollout_id]
        seen = commands.observe(rollout, rollout.attempts[-1], "running", None)
        assert seen is not None
        made.append(self.step(seen, name + "o"))
        ended = commands.update_attempt(
            rollout, rollout.attempts[-1], status="succeeded", worker_id=None, metadata=None,
            beat_us=None, watermark=watermark, reward=reward, lag_ms=0,
        )  # fmt: skip
        return [*made, self.step(ended, name + "e")]


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


def open_seconds(url: str) -> tuple[float, int, int]:
    """Open and close the store in a process of its own; (seconds to open, events, position of the snapshot used)."""
    code = (
        "import sys; from agentlightning.projections.store.store import open_store\n"
        "store = open_store(sys.argv[1]); r = store.report(); print(r['seconds'], r['events'], r['from_snapshot'])\n"
        "store.close()"
    )
    out = subprocess.run([sys.executable, "-c", code, url], check=True, capture_output=True, text=True).stdout.split()
    return float(out[-3]), int(out[-2]), int(out[-1])


def run() -> None:
    """Print fold rate, rebuild times and the memory that a million spans take."""
    rows: list[list[object]] = []
    history = History()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'log.db'}"
        log = open_log(url)
        made = 0
        values: list[bytes] = []
        while made < EVENTS:
            records = history.records(20_000)
            if made < 200_000:
                values.extend(record.value for record in records)
            append_all(log, records)
            made += len(records)
        log.close()
        began = time.perf_counter()
        fold.fold(values)
        rows.append(["fold + decode", f"{len(values) / (time.perf_counter() - began):,.0f} events/s"])
        first, events, _ = open_seconds(url)
        rows.append([f"{events:,} events from the log", f"{first:.2f} s"])
        second, _, at = open_seconds(url)
        rows.append([f"the same from the snapshot at {at:,}", f"{second:.2f} s"])
    rows.extend(_span_memory())
    show("Start-up and memory", ("what", "figure"), rows)


def _span_memory() -> list[list[object]]:
    """A million spans through a store on a file; resident memory after each fifth."""
    with tempfile.TemporaryDirectory() as folder:
        root = str(Path(__file__).resolve().parents[2])
        code = f"import sys; sys.path.insert(0, {root!r}); from tests.benchmarks.bench_rebuild import spans; spans({folder!r})"
        out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return [list[object](line.split("|")) for line in out.splitlines() if "|" in line]


def spans(folder: str) -> None:
    """Runs in a process of its own: 2,000 rollouts of 500 spans, finished one after the other."""

    async def body() -> None:
        store = open_store(f"sqlite:///{folder}/log.db")
        began = time.perf_counter()
        for fifth in range(5):
            for _ in range(SPANS // 5 // 500 // 10):
                await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)] * 10)
                await asyncio.gather(*(_fill(store) for _ in range(10)))
            print(f"{(fifth + 1) * SPANS // 5:,} spans: resident memory|{_resident_mb():.0f} MB")
        rate = SPANS / (time.perf_counter() - began)
        print(f"spans in process (500 a rollout, 50 a call)|{rate:,.0f} spans/s")
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
