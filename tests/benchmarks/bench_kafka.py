"""The store on a real broker: one node under 64 runners, four nodes that race for claims, spans, runner processes.

`AGL_BENCH_KAFKA=node,spans,single,runners` runs some of the parts only.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

import agentlightning as agl
from agentlightning.core.log.interface import NewRecord
from agentlightning.core.log.kafka import KafkaLog
from agentlightning.core.log.topics import SNAPSHOTS
from agentlightning.core.log.topics import SPANS as SPANS_TOPIC
from agentlightning.core.model.rollout import EnqueueRolloutRequest
from agentlightning.core.model.span import Span
from agentlightning.core.model.store_interface import LightningStore
from agentlightning.projections.facts.publisher import CURSOR_KEY, Cursor
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store
from tests.system.kafka.fleet import Fleet, audit, free_port
from tests.system.kafka.test_kafka_log import make_topics

from .bench_rebuild import EVENTS, History, append_all, open_seconds
from .brokers import a_broker, broker_seconds
from .counted import Used, count_requests, used, used_at
from .measured import note
from .table import percentile, show

ROLLOUTS = 6_000
RACED = 3_000
NODES, RUNNERS = 4, 8
SPAN_ROLLOUTS, SPANS = 100, 1_000
SINGLE_SPANS = 100
SLOTS, RUN = 64, {1: 300, 64: 2_000}
AGENT_SPANS = 4
AGENT = """
import agentlightning as agl

def step(number):
    with agl.operation(name="step") as one:
        one.set_output({"number": number, "text": "x" * 300})

async def quick(task):
    for number in range(3):
        step(number)
    return 1.0
"""


def run() -> None:
    """Print the tables; starts a broker where KAFKA_BOOTSTRAP names none."""
    count_requests()
    parts = {
        "node": _one_node, "race": _race, "spans": _spans, "single": _single_spans, "runners": _runners, "start": _start,
    }  # fmt: skip
    kept: dict[str, float] = {}
    with a_broker() as bootstrap:
        for name in os.environ.get("AGL_BENCH_KAFKA", ",".join(parts)).split(","):
            kept |= parts[name](bootstrap) or {}
    note("kafka", **kept)


def _per(spent: Used, count: int) -> list[str]:
    """Processor time and requests for each of so many."""
    return [f"{spent.cpu / count * 1e3:.2f}", f"{spent.requests.total() / count:.2f}", spent.kinds(count)]


def _address(bootstrap: str) -> str:
    url = f"kafka://{bootstrap}/bench-{os.urandom(4).hex()}"
    make_topics(url)
    return url


async def _enqueue(store: LightningStore, count: int) -> None:
    for _ in range(count // 500):
        await store.enqueue_many_rollouts([EnqueueRolloutRequest(input=number) for number in range(500)])


# One node


def _one_node(bootstrap: str) -> dict[str, float]:
    rows: list[list[object]] = []
    for runners in (1, 16, 64):
        store = open_store(_address(bootstrap))
        gc.collect()
        gc.freeze()  # as `agl store` does: the modules of this program are nothing that a node would walk again and again
        try:
            count = min(ROLLOUTS, 1_000 * runners)
            done, seconds, claims, verdicts, spent = asyncio.run(_drain(store, runners, count))
        finally:
            store.close()  # type: ignore[attr-defined]
        rows.append(
            [runners, f"{done / seconds:,.0f}", *(f"{percentile(times, share) * 1e3:.1f}"
                                                 for times in (claims, verdicts) for share in (0.5, 0.99)), *_per(spent, done)]
        )  # fmt: skip
    headings = ("runners", "claim + finish/s", "claim p50 ms", "claim p99 ms", "verdict p50 ms", "verdict p99 ms",
                "processor ms", "requests", "of which")  # fmt: skip
    show("One node on Kafka, rollouts of no length", headings, rows)
    return {"claim_ms": spent.cpu / done * 1e3}


async def _drain(
    store: LightningStore, runners: int, count: int
) -> tuple[int, float, list[float], list[float], Used]:
    """Claim and finish everything. A verdict is the time from an append's start to what the fold made of it."""
    await _enqueue(store, count)
    claims: list[float] = []
    ends: list[float] = []

    async def runner(name: str) -> int:
        done = 0
        while True:
            began = time.perf_counter()
            claimed = await store.dequeue_rollout(name)
            if claimed is None:
                return done
            claims.append(time.perf_counter() - began)
            began = time.perf_counter()
            await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
            ends.append(time.perf_counter() - began)
            done += 1

    began, before = time.perf_counter(), used()
    done = sum(await asyncio.gather(*(runner(f"w{number}") for number in range(runners))))
    return done, time.perf_counter() - began, claims, ends, used().since(before)


# Four nodes


def _race(bootstrap: str) -> None:
    url = _address(bootstrap)
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(url, Path(folder))
        try:
            for _ in range(NODES):
                fleet.add_node("--log-level", "WARNING")
            fleet.await_nodes()
            endpoints = [endpoint for endpoint in fleet.endpoints for _ in range(RUNNERS)]
            gate = Path(folder) / "go"
            command = [sys.executable, "-m", "tests.benchmarks.racer"]
            racers = [
                subprocess.Popen([*command, one, f"w{number}", str(gate)], cwd=Path(__file__).resolve().parents[2])
                for number, one in enumerate(endpoints)
            ]
            asyncio.run(_fill(fleet.endpoints[0]))
            while len(list(Path(folder).glob("go.*"))) < len(racers):
                time.sleep(0.1)
            began = time.perf_counter()
            gate.touch()
            for racer in racers:
                assert racer.wait(300) == 0
            seconds = time.perf_counter() - began
            stopped = fleet.stop()
        finally:
            fleet.kill()
    with KafkaLog(url) as log:
        found = audit(log)
    equal = all(found.prints[position] == fingerprint for position, fingerprint in stopped.values())
    done = sum(one.status == "succeeded" for one in found.state.rollouts.values())
    rows: list[list[object]] = [
        ["rollouts, each attempt owned once", f"{done:,}"],
        ["rollouts/s", f"{done / seconds:,.0f}"],
        ["claims lost to another node", f"{found.lost_claims / found.proposed_claims:.1%}"],
        ["fingerprints equal", f"{equal} ({len(stopped)} nodes)"],
    ]
    show(f"{NODES} nodes x {RUNNERS} runners, {NODES * (RUNNERS + 1)} processes", ("what", "figure"), rows)


async def _fill(endpoint: str) -> None:
    client = agl.LightningStoreClient(endpoint)
    await _enqueue(client, RACED)
    await client.close()


# Spans


def _spans(bootstrap: str) -> dict[str, float]:
    store = open_store(_address(bootstrap))
    assert isinstance(store, EventLogStore)
    try:
        seconds, complete, spent = asyncio.run(_write_spans(store))
    finally:
        store.close()
    total = SPAN_ROLLOUTS * SPANS
    rows: list[list[object]] = [
        [f"{SPAN_ROLLOUTS} rollouts of {SPANS:,} spans, 500 a call", f"{total / seconds:,.0f} spans/s"],
        ["processor time", f"{spent.cpu / total * 1e6:.1f} us a span"],
        ["completions with all their spans readable at once", f"{complete} of {SPAN_ROLLOUTS}"],
    ]
    show("Spans on Kafka", ("what", "figure"), rows)
    return {"batched_span_us": spent.cpu / total * 1e6}


async def _made(store: EventLogStore, rollouts: int, spans: int) -> list[list[Span]]:
    """Spans of rollouts that were just started."""
    claims = [await store.start_rollout({"number": number}) for number in range(rollouts)]
    return [
        [
            Span.from_attributes(rollout_id=one.rollout_id, attempt_id=one.attempt.attempt_id, attributes={"text": "x" * 300})
            for _ in range(spans)
        ]
        for one in claims
    ]


async def _write_spans(store: EventLogStore) -> tuple[float, int, Used]:
    """Seconds for spans that were made before, and how many completions had all of theirs when they were seen."""
    made = await _made(store, SPAN_ROLLOUTS, SPANS)
    # Two million objects that a runner, which sends as it goes, never holds: the collector would walk them all the time.
    gc.collect()
    gc.freeze()
    gate = asyncio.Semaphore(8)

    async def fill(spans: list[Span]) -> None:
        async with gate:
            for at in range(0, SPANS, 500):
                await store.add_many_spans(spans[at : at + 500])
            await store.update_attempt(spans[0].rollout_id, "latest", status="succeeded")

    async def look() -> int:
        complete = 0
        async for fact in store.subscribe("rollout.completed", since=-1):
            found = await asyncio.to_thread(store.engine.log.read_key, SPANS_TOPIC, fact.rollout_id or "")
            complete += len(found) == SPANS
            seen.append(fact.rollout_id)
            if len(seen) == SPAN_ROLLOUTS:
                break
        return complete

    seen: list[str | None] = []
    looking = asyncio.create_task(look())
    began, before = time.perf_counter(), used()
    await asyncio.gather(*(fill(spans) for spans in made))
    seconds, spent = time.perf_counter() - began, used().since(before)
    gc.unfreeze()
    return seconds, await looking, spent


def _single_spans(bootstrap: str) -> None:
    """Each runner adds its spans one by one, and waits for each."""
    rows: list[list[object]] = []
    for runners in (1, SLOTS):
        store = open_store(_address(bootstrap))
        assert isinstance(store, EventLogStore)

        async def add(store: EventLogStore, runners: int) -> tuple[float, Used]:
            async def one(spans: list[Span]) -> None:
                for span in spans:
                    await store.add_span(span)

            made = await _made(store, runners, SINGLE_SPANS)
            began, before = time.perf_counter(), used()
            await asyncio.gather(*map(one, made))
            return time.perf_counter() - began, used().since(before)

        try:
            seconds, spent = asyncio.run(add(store, runners))
        finally:
            store.close()
        total = runners * SINGLE_SPANS
        rows.append([runners, f"{total / seconds:,.0f}", *_per(spent, total)])
    show("Spans on Kafka, one a call", ("runners", "spans/s", "processor ms", "requests", "of which"), rows)


# Runner processes


def _runners(bootstrap: str) -> dict[str, float]:
    """A runner on the log itself, and one at a node; agents that record three operations and a reward."""
    rows: list[list[object]] = []
    kept: dict[str, float] = {}
    for slots, count in RUN.items():
        for how in ("kafka://", "http://"):
            began = broker_seconds(bootstrap)
            seconds, spent = _runner_at(_address(bootstrap), how, slots, count)
            rows += [[slots, f"{name} ({how})", f"{count / seconds:,.0f}", *_per(one, count)] for name, one in spent.items()]
            # The last one counts: a node over HTTP, with most slots.
            broker_ms = (broker_seconds(bootstrap) - began) / (count + _warm(slots)) * 1e3
            requests = sum(one.requests.total() for one in spent.values()) / count
            kept = {"requests": requests, "broker_ms": broker_ms, "node_spans": AGENT_SPANS}
            kept |= {f"{name}_ms": one.cpu / count * 1e3 for name, one in spent.items()}
    head = ("slots", "process", "rollouts/s", "processor ms", "requests", "of which")
    show("A runner process, agents of no length, a rollout", head, rows)
    return kept


def _warm(slots: int) -> int:
    """Rollouts of the first part, which is not measured."""
    return 2 * slots + 20


def _runner_at(url: str, how: str, slots: int, count: int) -> tuple[float, dict[str, Used]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "quick_agent.py").write_text(AGENT)
        processes: dict[str, subprocess.Popen[bytes]] = {}

        def start(name: str, *arguments: str) -> None:
            command = [sys.executable, "-m", "tests.benchmarks.counted", str(Path(folder) / name), *arguments]
            places = f"{Path(__file__).resolve().parents[2]}{os.pathsep}{folder}"
            processes[name] = subprocess.Popen([*command, "--log-level", "ERROR"], env={**os.environ, "PYTHONPATH": places})

        store = open_store(url)
        assert isinstance(store, EventLogStore)
        try:
            address = url
            if how == "http://":
                port = free_port()
                start("node", "store", "--log", url, "--port", str(port))
                address = f"http://127.0.0.1:{port}"
                _await_port(port)
            start("runner", "runner", "quick_agent:quick", "--store", address, "--slots", str(slots))
            began, ended = asyncio.run(_work(store, slots, count))
        finally:
            for process in reversed(list(processes.values())):
                process.terminate()
                process.wait(60)
            store.close()
        spent = {
            name: used_at(Path(folder) / name, ended).since(used_at(Path(folder) / name, began)) for name in processes
        }
    return ended - began, spent


async def _work(store: EventLogStore, slots: int, measured: int) -> tuple[float, float]:
    """Run everything; the moments of its begin and end, after a first part that is not measured."""
    made: list[str] = []
    began = 0.0
    for count in (_warm(slots), measured):
        began = time.time()
        made = [one.rollout_id for at in range(0, count, 500) for one in await store.enqueue_many_rollouts(
            [EnqueueRolloutRequest(input=number) for number in range(at, min(at + 500, count))])]  # fmt: skip
        done = await store.wait_for_rollouts(made, timeout=300)
        assert [one.status for one in done] == ["succeeded"] * count
    return began, time.time()


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


# Start


def _start(bootstrap: str) -> None:
    url = _address(bootstrap)
    history = History()
    with KafkaLog(url) as log:
        while history.state.position < EVENTS:
            append_all(log, history.records(20_000))
        # The facts of a log that was in use are published; here a node would begin with that.
        state = history.state
        cursor = Cursor(
            log_id=log.log_id, position=state.position - 1, fingerprint=state.fingerprint.hex(), writer="bench"
        )
        append_all(log, [NewRecord(CURSOR_KEY, msgspec.json.encode(cursor), 0)], SNAPSHOTS)
    rows: list[list[object]] = []
    for what in ("from the log", "from the snapshot that the first one left"):
        opened = open_seconds(url)
        rows.append([
            f"{opened.events:,} events, {what} (at {opened.snapshot:,})",
            f"{opened.seconds:.2f} s", f"{opened.complete:.2f} s", f"{opened.cpu:.2f} s",
        ])  # fmt: skip
    head = ("what", "until it serves", "until answers are complete", "processor time")
    show("A node without anything on its machine", head, rows)
