"""A log that is not what was folded ends its store: each call raises the same named error, and none of them hangs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentlightning.core.errors import HistoryChanged, LogClosed, LogError, OffsetLost, StorageError
from agentlightning.core.log.interface import Ack, OnProblem, OnRecords, Subscription
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.replica.divergence import fingerprint_at
from agentlightning.projections.store.store import EventLogStore

from ..store.logs import HeldLog
from ..store.tools import Unclosed, store_on


class Breaking(Unclosed):
    """Its control tail can end with any error, and its acknowledgements can name any offset."""

    problem: OnProblem
    placed_at: int | None = None

    def follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        if topic == CONTROL:
            self.problem = on_problem
        return self._log.follow(topic, partition, offset, on_records, on_problem)

    def append(self, topic: str, partition: int, records: Any, done: Any) -> None:
        def placed(result: Ack | LogError) -> None:
            moved = topic == CONTROL and self.placed_at is not None and isinstance(result, Ack)
            done(Ack(self.placed_at, result.count) if moved else result)  # type: ignore[arg-type, union-attr]

        self._log.append(topic, partition, records, placed)


async def ended(store: EventLogStore, error: type[Exception], waiting: list[asyncio.Future[Any]]) -> None:
    """Who waits and who calls gets the same error, soon."""
    for one in waiting:
        with pytest.raises(error):
            await asyncio.wait_for(one, 5)
    for call in (
        store.enqueue_rollout, store.get_rollout_by_id, store.query_attempts, store.get_worker_by_id, store.update_worker,
        store.start_rollout, store.start_attempt,
    ):  # fmt: skip
        with pytest.raises(error):
            await asyncio.wait_for(call("x"), 1)
    with pytest.raises(error):
        store.position()


@pytest.mark.parametrize(
    ("problem", "error"), [(OffsetLost(offset=1), HistoryChanged), (StorageError("the tail is gone"), StorageError)]
)
async def test_a_log_that_cannot_be_followed_any_more_ends_the_store(problem: LogError, error: type[Exception]) -> None:
    inner = MemoryLog()
    log = Breaking(inner)
    store = EventLogStore(log, foreign_writers=True)  # type: ignore[arg-type]
    told: list[Exception] = []
    store.on_end(told.append)
    made = await store.start_rollout("x")
    waiting: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(store.dequeue_rollout(wait_seconds=60)),
        asyncio.ensure_future(store.wait_for_rollouts([made.rollout_id])),
        asyncio.ensure_future(anext(store.subscribe())),  # type: ignore[arg-type]
    ]
    await asyncio.sleep(0.05)
    log.problem(problem)
    await ended(store, error, waiting)
    assert [type(one) for one in told] == [error] and "restart" in str(told[0])
    store.close()
    with pytest.raises(LogClosed):
        await store.enqueue_rollout("x")
    with store_on(inner, foreign_writers=True) as anew:
        assert await anew.get_rollout_by_id(made.rollout_id) is not None, "opened again, the log is folded anew"
    inner.close()


@pytest.mark.parametrize("shared", [False, True])
async def test_an_offset_that_was_given_twice_ends_the_store_and_leaves_no_command_hanging(shared: bool) -> None:
    inner = MemoryLog()
    log: Any = Breaking(HeldLog(inner, CONTROL))  # type: ignore[arg-type]
    store = EventLogStore(log, foreign_writers=shared)
    await store.enqueue_rollout("x")
    log._log.held = True  # the tail is not quicker than the acknowledgement
    log.placed_at = 0
    await ended(store, HistoryChanged, [asyncio.ensure_future(store.enqueue_rollout("y"))])
    store.close()
    inner.close()


async def test_a_node_whose_history_departs_finds_it_out_by_folding_the_log() -> None:
    log = MemoryLog()
    store = EventLogStore(log, foreign_writers=True)
    await store.enqueue_rollout("x")
    node = store.engine.node
    assert fingerprint_at(store.engine, node.state.position - 1) == node.state.fingerprint
    node.state.fingerprint = b"elsewise"  # as if other records had been folded
    with store_on(log, foreign_writers=True) as other:
        for number in range(2):  # the second one is based on a fingerprint that this node does not have
            await other.enqueue_rollout(number)
        for _ in range(500):
            if store._ended is not None:
                break
            await asyncio.sleep(0.01)
    await ended(store, HistoryChanged, [])
    store.close()
    log.close()


async def test_a_fold_that_fails_ends_the_store_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentlightning.projections.replica import node as module

    store = EventLogStore(MemoryLog())
    await store.enqueue_rollout("x")

    def failing(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "apply", failing)
    await ended(store, StorageError, [asyncio.ensure_future(store.enqueue_rollout("y"))])
    monkeypatch.undo()
    store.close()
