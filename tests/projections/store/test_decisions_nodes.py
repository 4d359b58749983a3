"""The answers to hard questions that take several nodes, logs or processes, by their numbers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.core.errors import Refused
from agentlightning.core.events import codec
from agentlightning.core.events.schema import RolloutStarted, TimePassed
from agentlightning.core.log.interface import Log, NewRecord
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.sqlite import SqliteLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.replica.node import Node
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.store import EventLogStore

from .tools import attempt_of, begin, control_values, settled, span, status_of, store_on


def put(log: Log, *records: NewRecord) -> None:
    """Append to the control log and wait."""
    ready = threading.Event()
    log.append(CONTROL, 0, records, lambda _: ready.set())
    assert ready.wait(10)


async def a_day(store: EventLogStore, retries: int) -> None:
    for number in range(4):
        config = agl.RolloutConfig(max_attempts=retries, retry_condition=["failed"])
        attempted = await begin(store, config, f"w{number}")
        await store.add_span(span(attempted))
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")


async def test_05_start_rollout_is_one_event() -> None:
    log = MemoryLog()
    with store_on(log) as store:
        before = len(control_values(log))
        started = await store.start_rollout("x", worker_id="w")
        (made,) = [codec.decode(value).event for value in control_values(log)[before:]]
        assert isinstance(made, RolloutStarted) and made.rollout.rollout_id == started.rollout_id
    log.close()


async def test_07_the_records_of_a_file_in_another_log_have_one_fingerprint(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "first.db") as first, MemoryLog() as copied:
        with store_on(first) as store:
            await a_day(store, 1)
            printed = store.fingerprint()
        records = [NewRecord("", one.value, one.timestamp_us) for one in first.read(CONTROL, 0, 0, 100_000)]
        put(copied, *records)
        node = Node(copied, StoreSettings())
        node.open()
        assert (node.state.position, node.state.fingerprint.hex()) == printed
        node.close()
        with SqliteLog(tmp_path / "second.db") as second:
            put(second, *(NewRecord("", one.value, 0) for one in copied.read(CONTROL, 0, 0, 9999)))
            with store_on(second) as store:
                assert store.fingerprint() == printed
                await a_day(store, 1)


_HELD = """
import asyncio, os, signal, sys
import agentlightning as agl
from agentlightning.projections.liveness import expiry as timekeeper
from agentlightning.rest.open_store import open_store

async def main():
    timekeeper.TICK_SECONDS = float(sys.argv[2])
    store = open_store("sqlite:///" + sys.argv[1])
    await store.enqueue_rollout("x", config=agl.RolloutConfig(unresponsive_seconds=2.5, timeout_seconds=6))
    await store.update_worker("w", incarnation="i")
    held = await store.dequeue_rollout("w", incarnation="i")
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)  # here, and not whenever the other process has started too
    for _ in range(12):
        await store.update_worker("w", incarnation="i", attempts=[(held.rollout_id, held.attempt.attempt_id)])
        await asyncio.sleep(0.2)
    print((await store.query_attempts(held.rollout_id))[0].status, flush=True)
    store.close()

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this platform cannot freeze a process")
def test_19_a_store_that_was_frozen_for_twice_the_limit_expires_nobody(tmp_path: Path) -> None:
    """One turn counts two ticks at most. Beside it a store with ticks of a minute, where that rule is as good as gone."""
    frozen = [
        subprocess.Popen(
            [sys.executable, "-c", _HELD, str(tmp_path / f"{tick}.db"), tick], stdout=subprocess.PIPE, text=True
        )
        for tick in ("1", "60")
    ]
    try:
        for process in frozen:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
        time.sleep(5)
        for process in frozen:
            os.kill(process.pid, signal.SIGCONT)
        kept, expired = (process.communicate(timeout=30)[0].strip() for process in frozen)
        assert kept == "preparing" and expired in ("timeout", "unresponsive")
    finally:
        for process in frozen:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("how", ["frozen", "gone"])
async def test_20_without_the_first_timekeeper_the_second_one_goes_on(how: str) -> None:
    log, clock = MemoryLog(), ManualClock()
    with store_on(log, clock=clock, foreign_writers=True) as second:
        with store_on(log, clock=clock, foreign_writers=True) as first:
            attempted = await begin(first, agl.RolloutConfig(timeout_seconds=20))
            await second.wait_position(first.position())
            first.engine.expiry.close()
            if how == "gone":
                first.close()
            for _ in range(30):
                clock.advance(1)
                with second.engine.node.lock:
                    second.engine.expiry.turn()
                await settled(second.engine)
            assert (await attempt_of(second, attempted.rollout_id)).status == "timeout"
            writers = {one.writer for one in map(codec.decode, control_values(log)) if isinstance(one.event, TimePassed)}
            assert writers == {second.engine.node.writer}
            if how == "frozen":
                await first.wait_position(second.position())
                assert first.fingerprint() == second.fingerprint()
    log.close()


def unknown(store: EventLogStore, noncritical: bool) -> NewRecord:
    """What a newer release could write next."""
    state = store.engine.node.state
    tree = {
        "id": f"{state.position:032x}", "time_us": 1, "writer": "newer", "basis": state.position - 1,
        "basis_print": state.fingerprint, "event": {"t": "moon.landed", "where": 3}, "noncritical": noncritical,
    }  # fmt: skip
    return NewRecord("", msgspec.json.encode(tree), 1)


async def test_33_a_store_beside_a_newer_one_skips_what_it_may_and_stops_before_what_it_may_not() -> None:
    log = MemoryLog()
    with store_on(log, foreign_writers=True) as store:
        attempted = await begin(store)
        before = store.fingerprint()
        put(log, unknown(store, noncritical=True))
        await store.wait_position(":".join([store.position().split(":")[0], "", str(before[0] + 1)]))
        assert store.fingerprint() == (before[0] + 1, before[1])
        await store.add_span(span(attempted))
        assert await status_of(store, attempted.rollout_id) == "running", "it goes on writing behind the skipped record"
        put(log, unknown(store, noncritical=False))
        with pytest.raises(Refused, match=r"moon\.landed.*upgrade"):
            await asyncio.wait_for(store.update_attempt(attempted.rollout_id, "latest", status="succeeded"), 10)
        assert await status_of(store, attempted.rollout_id) == "running"
    with pytest.raises(Refused, match="upgrade"), store_on(log):
        pytest.fail("a store that cannot judge its log must not serve")
    log.close()
