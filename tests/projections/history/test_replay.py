"""Rebuilding beside a living event loop, and memory that follows what is active, not what was ever stored."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from agentlightning.core.events.codec import encode
from agentlightning.core.events.payload import encode as payload
from agentlightning.core.events.schema import Claim, NewRollout, Proposal
from agentlightning.core.fold import commands
from agentlightning.core.fold.apply import apply
from agentlightning.core.fold.state import State
from agentlightning.core.ids import uuid7_hex
from agentlightning.core.log.interface import NewRecord
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.spans import span_log
from agentlightning.projections.store.store import EventLogStore

from ..store.tools import begin, span, store_on


def long_log(records: int) -> MemoryLog:
    """A control log of many short rollouts."""
    state, values = State(), list[bytes]()

    def put(event: object) -> None:
        proposal = Proposal(
            id=uuid7_hex(), time_us=state.position, writer="w", basis=state.position - 1,
            basis_print=state.fingerprint, event=event,  # type: ignore[arg-type]
        )  # fmt: skip
        values.append(encode(proposal))
        assert apply(state, values[-1]).accepted

    put(commands.open_log(1000, 1000, 1))
    body = payload({"task": "what is it? " * 5})
    while len(values) < records:
        rollout_id = commands.rollout_id_of(uuid7_hex())
        put(commands.enqueue([NewRollout(rollout_id, msgspec.Raw(body))]))
        put(commands.claim(state, rollout_id, Claim(attempt_id="at-12345678", worker_id="w")))
        rollout = state.rollouts[rollout_id]
        put(commands.update_attempt(
            rollout, rollout.attempts[0], status="succeeded", worker_id=None, metadata=None, beat_us=None,
            watermark=0, lag_ms=0,
        ))  # fmt: skip
    log = MemoryLog()
    for at in range(0, len(values), 10_000):
        log.append(CONTROL, 0, [NewRecord("", one, 0) for one in values[at : at + 10_000]], lambda _: None)
    while log.ends(CONTROL, 0)[1] < len(values):
        time.sleep(0.01)
    return log


async def test_27_a_replay_in_a_thread_leaves_the_event_loop_alive() -> None:
    log = await asyncio.to_thread(long_log, 60_000)
    delays: list[float] = []
    ended = asyncio.Event()

    async def pulse() -> None:
        while not ended.is_set():
            began = time.perf_counter()
            await asyncio.sleep(0.002)
            delays.append(time.perf_counter() - began - 0.002)

    pulsing = asyncio.ensure_future(pulse())
    opened = time.perf_counter()
    store = await asyncio.to_thread(EventLogStore, log)
    took = time.perf_counter() - opened
    ended.set()
    await pulsing
    assert store.fingerprint()[0] >= 60_000 and (await store.query_rollouts(limit=1)).total >= 19_999
    store.close()
    delays.sort()
    assert len(delays) > 10, "the loop ran all the while"
    assert delays[len(delays) // 2] < took / 10 and delays[-1] < took / 2, "a loop that is held up waits for all of it"


async def test_memory_stays_flat_over_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentlightning.rest.open_store import open_store

    monkeypatch.setattr(span_log, "HOT_SPANS", 1000)
    store = open_store(f"sqlite:///{tmp_path / 'log.db'}")
    assert isinstance(store, EventLogStore)

    async def spans(count: int) -> None:
        for _ in range(count // 250):
            attempted = await begin(store)
            await store.add_many_spans([span(attempted, attributes={"text": "x" * 500}) for _ in range(250)])
            await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")

    with store:
        await spans(4000)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await spans(10_000)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown / 10_000 < 100, f"{grown / 10_000:.0f} bytes stay in memory for each span"
        assert (await store.statistics()).get("total_spans") == 14_000


async def test_memory_follows_active_work_not_history() -> None:
    log = MemoryLog()
    with store_on(log, settings=StoreSettings(window=50, archive_after=50)) as store:

        async def lives(count: int) -> None:
            for _ in range(count):
                attempted = await begin(store, worker_id="w")
                await store.add_span(span(attempted))
                await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")

        await lives(100)
        engine = store.engine
        assert len(engine.node.state.rollouts) < 40 and len(engine.node.state.verdicts) <= 51
        assert not engine.heartbeats.open and not engine.spans.born and not engine.expiry.backoffs
        assert len(engine.waiters) == 0
    log.close()
