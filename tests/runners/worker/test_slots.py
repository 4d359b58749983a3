"""A runner with several slots: as many workers, none of which waits for another, and endings as with one."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.errors import InvalidInput, Unauthorized
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store

PROMPT = {"prompt": "Say {x}"}


def make(slots: int, max_rollouts: int | None = None, **options: Any) -> agl.LitAgentRunner[Any]:
    return agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=max_rollouts, slots=slots, **options)


class Together:
    """Counts how many run at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._gate = threading.Lock()

    def __enter__(self) -> None:
        with self._gate:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._gate:
            self.now -= 1


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_slots_work_side_by_side_each_as_a_worker_of_its_own(kind: str, asynchronous: bool, tmp_path: Path) -> None:
    together = Together()

    async def coroutine(task: int) -> float:
        with together:
            await asyncio.sleep(0.05)
        return float(task)

    def function(task: int) -> float:
        with together:
            time.sleep(0.05)
        return float(task)

    store: Any = InMemoryLightningStore() if kind == "memory" else open_store(f"sqlite:///{tmp_path}/log.db")
    try:
        await store.add_resources(PROMPT)
        made = [await store.enqueue_rollout(number) for number in range(12)]
        runner = make(4, max_rollouts=10)
        with runner.run_context(agent=coroutine if asynchronous else function, store=store, worker_id=7):
            await runner.iter()
        assert together.most == 4
        ended = [await store.get_rollout_by_id(one.rollout_id) for one in made]
        assert [one.status for one in ended] == ["succeeded"] * 10 + ["queuing"] * 2
        workers = [one.attempt.worker_id for one in ended[:10]]
        assert set(workers) == {f"Worker-7-{slot}" for slot in range(4)}
        assert isinstance(store, EventLogStore)
        known = [store.engine.node.state.rollouts[one.rollout_id].attempts[0] for one in made[:10]]
        assert len({(one.worker_id, one.incarnation) for one in known}) == 4
        for one in ended[:10]:  # no span of one in the trace of another
            assert agl.find_final_reward(await store.query_spans(one.rollout_id)) == float(one.input)
    finally:
        store.close()


async def test_heartbeats_of_every_slot_name_what_it_runs(store: InMemoryLightningStore) -> None:
    seen: dict[str, set[tuple[tuple[str, str], ...]]] = {}
    update = store.update_worker

    async def watched(worker_id: str, *args: Any, attempts: Any = (), **kwargs: Any) -> Any:
        seen.setdefault(worker_id, set()).add(tuple(attempts))
        return await update(worker_id, *args, attempts=attempts, **kwargs)

    store.update_worker = watched  # type: ignore[method-assign]

    async def agent(task: int) -> float:
        await asyncio.sleep(0.3)
        return 1.0

    await store.add_resources(PROMPT)
    made = [await store.enqueue_rollout(number) for number in range(2)]
    runner = make(3, max_rollouts=2, heartbeat_interval=0.05, interval_jitter=0.0)
    stop = threading.Event()
    with runner.run_context(agent=agent, store=store):
        work = asyncio.ensure_future(runner.iter(event=stop))
        await store.wait_for_rollouts([one.rollout_id for one in made], timeout=5)
        stop.set()
        await work
    assert set(seen) == {"Worker-0-0", "Worker-0-1", "Worker-0-2"}
    named = {rollout_id for beats in seen.values() for beat in beats for rollout_id, _ in beat}
    assert named == {one.rollout_id for one in made}
    assert all(len(beat) <= 1 for beats in seen.values() for beat in beats)


async def test_a_stop_lets_all_slots_finish_and_a_cancellation_ends_them_as_failed(store: InMemoryLightningStore) -> None:
    async def agent(task: str) -> float:
        await asyncio.sleep(0.3 if task == "short" else 30)
        return 1.0

    await store.add_resources(PROMPT)
    short = [await store.enqueue_rollout("short") for _ in range(2)]
    runner, stop = make(3), threading.Event()
    with runner.run_context(agent=agent, store=store):
        work = asyncio.ensure_future(runner.iter(event=stop))
        await asyncio.sleep(0.1)
        stop.set()
        await asyncio.wait_for(work, 5)
        assert {(await store.get_rollout_by_id(one.rollout_id)).status for one in short} == {"succeeded"}  # type: ignore[union-attr]
        long = [await store.enqueue_rollout("long") for _ in range(2)]
        work = asyncio.ensure_future(runner.iter())
        await asyncio.sleep(0.2)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert {(await store.get_rollout_by_id(one.rollout_id)).status for one in long} == {"failed"}  # type: ignore[union-attr]


async def test_an_error_of_one_slot_ends_the_runner_after_what_runs(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = store.dequeue_rollout

    async def refused(worker_id: str | None = None, **kwargs: Any) -> Any:
        if worker_id == "Worker-0-1":
            await asyncio.sleep(0.1)
            raise Unauthorized("a wrong token")
        return await claim(worker_id, **kwargs)

    async def agent(task: str) -> float:
        await asyncio.sleep(0.3)
        return 1.0

    monkeypatch.setattr(store, "dequeue_rollout", refused)
    await store.add_resources(PROMPT)
    one = await store.enqueue_rollout("x")
    await store.enqueue_rollout("y")
    runner = make(4)
    with runner.run_context(agent=agent, store=store), pytest.raises(Unauthorized):
        await asyncio.wait_for(runner.iter(), 5)
    assert (await store.get_rollout_by_id(one.rollout_id)).status == "succeeded"  # type: ignore[union-attr]


def test_no_slot_and_no_group_are_refused() -> None:
    for options in ({"slots": 0}, {"slots": 1, "group": ""}):
        with pytest.raises(InvalidInput):
            make(**options)  # type: ignore[arg-type]
