"""Which rollout a claimer is offered: strict order for one writer, ranks among several nodes, hints, stealing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from queue import SimpleQueue
from typing import Any

import msgspec
import pytest

from agentlightning.core.clock import ManualClock
from agentlightning.core.errors import StorageError
from agentlightning.core.events import codec
from agentlightning.core.events.schema import AttemptClaimed
from agentlightning.core.fold.apply import apply
from agentlightning.core.fold.state import State
from agentlightning.core.log.interface import Membership, OnProblem, OnRecords, Record, Subscription
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL, TASKS
from agentlightning.projections.queue.claim_queue import STEAL_SECONDS, WINDOW, ClaimQueue
from agentlightning.projections.queue.task_hints import HintFeed, Offsets, feed_of
from agentlightning.projections.replica.command_context import Delivery
from agentlightning.projections.store.store import EventLogStore

from ..store.tools import store_on


class FakeMember(Membership):
    """Hands over what the test puts in, as fast or slow as it likes."""

    def __init__(self) -> None:
        self._all: list[Record] = []
        self.committed: dict[int, int] = {}
        self.commits = 0
        self.asked: list[int] = []
        self.paused = False
        self._records: list[Record] = []
        self._changed = threading.Condition()
        self._closed = False

    def put(self, rollout_id: str, position: int, partition: int = 0, value: bytes | None = None) -> None:
        body = value if value is not None else msgspec.json.encode({"rollout_id": rollout_id, "position": position, "id": "x"})
        with self._changed:
            offset = sum(one.partition == partition for one in self._all)
            record = Record(TASKS, partition, offset, rollout_id, body, 0)
            self._all.append(record)
            self._records.append(record)
            self._changed.notify_all()

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[Record]:
        with self._changed:
            self.asked.append(max_records)
            if not self._records and not self._closed:
                self._changed.wait(timeout_seconds)
            if self.paused:
                return []
            found, self._records = self._records[:max_records], self._records[max_records:]
            return found

    def commit(self, topic: str, partition: int, offset: int) -> None:
        self.committed[partition] = offset
        self.commits += 1

    def assignment(self) -> frozenset[tuple[str, int]]:
        return frozenset({(TASKS, 0)})

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class GroupLog(MemoryLog):
    """A log in memory that has `tasks` as a topic, with one member, or whatever `joining` does instead."""

    def __init__(self, joining: Callable[[], Membership] | None = None) -> None:
        super().__init__()
        self.member = FakeMember()
        self.gate: threading.Event | None = None
        self._joining = joining if joining is not None else lambda: self.member

    def partitions_published(self, topic: str) -> int:
        return 4

    def follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        gate = self.gate
        if gate is None:
            return super().follow(topic, partition, offset, on_records, on_problem)
        held: SimpleQueue[Sequence[Record]] = SimpleQueue()

        def hand_over() -> None:
            while True:
                records = held.get()
                gate.wait(5)
                on_records(records)

        threading.Thread(target=hand_over, daemon=True).start()
        return super().follow(topic, partition, offset, held.put, on_problem)

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Membership:
        return self._joining() if list(topics) == [TASKS] else super().join(group, topics, member_id)


def hinted(store: EventLogStore) -> HintFeed:
    feed = feed_of(store)
    assert feed is not None
    return feed


async def until(true: Callable[[], Any], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def claims_of(log: MemoryLog) -> tuple[int, int]:
    """(claims in the log, those that somebody else was quicker than)."""
    state, made, lost = State(), 0, 0
    for record in log.read(CONTROL, 0, 0, 1_000_000):
        event = codec.decode(record.value).event
        outcome = apply(state, record.value)
        if isinstance(event, AttemptClaimed):
            made += 1
            lost += outcome.verdict is None or not outcome.verdict.accepted
    return made, lost


# Order


async def test_the_only_writer_of_a_log_hands_out_in_strict_order() -> None:
    with MemoryLog() as log, store_on(log) as store:
        made = [(await store.enqueue_rollout(number)).rollout_id for number in range(200)]
        claimed = await asyncio.gather(*(store.dequeue_rollout(f"w{number}") for number in range(200)))
        assert {one.rollout_id for one in claimed if one is not None} == set(made)
        order = [codec.decode(one.value).event for one in log.read(CONTROL, 0, 0, 10_000)]
        assert [event.rollout_id for event in order if isinstance(event, AttemptClaimed)] == made


def crowd(names: str, clock: ManualClock) -> dict[str, ClaimQueue]:
    """The dispatch of each node; all know of each other."""
    made = {name: ClaimQueue(Delivery(), name, clock) for name in names}
    for one in made.values():
        for name in names:
            one.claimed(name, "ro-before")
    return made


def test_every_rollout_is_offered_at_once_by_exactly_one_of_the_nodes_and_later_by_all() -> None:
    clock, state = ManualClock(0.0), State()
    nodes = crowd("abcd", clock)
    state.queue = dict.fromkeys(f"ro-{number}" for number in range(WINDOW))
    for one in nodes.values():
        for rollout_id in state.queue:
            one.offer(state, rollout_id)
    offered: dict[str, list[str]] = {}
    for name, one in nodes.items():
        while (rollout_id := one.take(state)) is not None:
            offered.setdefault(rollout_id, []).append(name)
    assert set(offered) == set(state.queue) and {len(names) for names in offered.values()} == {1}
    shares = [sum(names == [name] for names in offered.values()) for name in nodes]
    assert min(shares) >= 6, shares
    soon = nodes["a"].opens_in(state)
    assert soon is not None and STEAL_SECONDS <= soon <= 0.040
    clock.advance(0.040)
    assert nodes["a"].take(state) is not None


def test_who_does_not_come_again_is_left_nothing_for_others_and_a_silent_node_is_forgotten() -> None:
    clock, state = ManualClock(0.0), State()
    node = crowd("ab", clock)["a"]
    state.queue = dict.fromkeys(f"ro-{number}" for number in range(20))
    for rollout_id in state.queue:
        node.offer(state, rollout_id)
    taken: list[str] = []
    while (one := node.take(state)) is not None:
        taken.append(one)
    assert 0 < len(taken) < 20
    assert node.take(state, patient=False) is not None
    clock.advance(11.0)
    node.opens_in(state)
    left = [node.take(state) for _ in range(19 - len(taken))]
    assert left == [one for one in state.queue if one not in taken][1:]


def test_the_order_is_strict_but_for_a_window() -> None:
    clock, state = ManualClock(0.0), State()
    node = crowd("abcdefgh", clock)["a"]
    ids = [f"ro-{number}" for number in range(1000)]
    state.queue = dict.fromkeys(ids)
    node.load(state)
    taken: list[str] = []
    for turn in range(900):
        one = node.take(state)
        assert one is not None and ids.index(one) - turn < WINDOW
        taken.append(one)
    assert len(set(taken)) == 900


@pytest.mark.alone
async def test_few_claims_of_several_nodes_are_lost() -> None:
    """4 nodes x 8 runners on one log, 1,000 short rollouts that come while they work: at most 6 % of the claims are lost."""
    with MemoryLog() as log, ExitStack() as stack:
        stores = [stack.enter_context(store_on(log, foreign_writers=True)) for _ in range(4)]
        for store in stores:  # from then on they know each other
            await store.enqueue_rollout("x")
            assert await store.dequeue_rollout("w") is not None
        left = {(await stores[0].enqueue_rollout(number)).rollout_id for number in range(200)}

        async def run(store: EventLogStore, worker: str) -> None:
            while left:
                claimed = await store.dequeue_rollout(worker, wait_seconds=0.2)
                if claimed is not None:
                    await asyncio.sleep(0.005)
                    await store.update_attempt(claimed.rollout_id, "latest", status="succeeded")
                    left.discard(claimed.rollout_id)

        async def feed() -> None:
            for number in range(800):
                left.add((await stores[number % 4].enqueue_rollout(number)).rollout_id)
                await asyncio.sleep(0.001)

        await asyncio.gather(feed(), *(run(store, f"w{index}") for index in range(8) for store in stores))
        made, lost = claims_of(log)
        print(f"\n{made} claims, {lost} lost: {lost / made:.1%}")
        assert made - lost == 1004 and lost / made <= 0.06


# Hints and stealing


async def test_a_hint_is_claimed_at_once_and_committed_before_its_agent_is_done() -> None:
    with closing(GroupLog()) as log, store_on(log, foreign_writers=True) as store, hinted(store):
        waiting = asyncio.ensure_future(store.dequeue_rollout("w", wait_seconds=5))
        await until(lambda: log.member.asked)
        store.engine.claim_queue._clock = ManualClock(0.0)  # nothing can be stolen while no time passes
        rollout = await store.enqueue_rollout("x")
        await asyncio.sleep(0.1)
        assert not waiting.done()
        log.member.put(rollout.rollout_id, store.engine.node.state.position - 1)
        claimed = await asyncio.wait_for(waiting, 1)
        assert claimed is not None and claimed.rollout_id == rollout.rollout_id
        await until(lambda: log.member.committed == {0: 1})


async def test_25_a_hint_that_outruns_the_fold_is_kept_until_the_fold_is_there() -> None:
    with closing(GroupLog()) as log, store_on(log, foreign_writers=True) as other:
        log.gate = threading.Event()
        log.gate.set()
        with store_on(log, foreign_writers=True) as slow, hinted(slow):
            waiting = asyncio.ensure_future(slow.dequeue_rollout("w", wait_seconds=5))
            await until(lambda: log.member.asked)
            slow.engine.claim_queue._clock = ManualClock(0.0)
            log.gate.clear()
            made = [await other.enqueue_rollout(number) for number in range(3)]
            log.member.put(made[1].rollout_id, slow.engine.node.state.position + 1)
            await asyncio.sleep(0.1)
            assert not waiting.done() and log.member.committed == {}
            log.gate.set()
            claimed = await asyncio.wait_for(waiting, 1)
            assert claimed is not None and claimed.rollout_id == made[1].rollout_id
            await until(lambda: log.member.committed == {0: 1})


async def test_stale_foreign_and_broken_hints_are_let_go() -> None:
    with closing(GroupLog()) as log, store_on(log, foreign_writers=True) as store, hinted(store):
        done = await store.start_rollout("x")
        waiting = asyncio.ensure_future(store.dequeue_rollout("w", wait_seconds=1))
        log.member.put(done.rollout_id, 1)
        log.member.put(done.rollout_id, 1)
        log.member.put("ro-unknown", 1)
        log.member.put("", 0, value=b"\xff no hint")
        log.member.put("", 0, value=b'{"rollout_id": 7}')
        log.member.put(done.rollout_id, 1_000_000)
        await until(lambda: log.member.committed == {0: 6})
        assert await waiting is None


async def test_hints_that_are_done_soon_after_one_another_are_committed_together_and_the_last_ones_at_the_end() -> None:
    with closing(GroupLog()) as log, store_on(log, foreign_writers=True) as store:
        with hinted(store):
            for number in range(20):
                waiting = asyncio.ensure_future(store.dequeue_rollout("w", wait_seconds=5))
                rollout = await store.enqueue_rollout(number)
                log.member.put(rollout.rollout_id, store.engine.node.state.position - 1)
                assert await waiting is not None
            await until(lambda: len(log.member._records) == 0)
        assert log.member.committed == {0: 20}
        assert log.member.commits < 10


async def test_who_is_busy_takes_no_hints() -> None:
    with closing(GroupLog()) as log, store_on(log, foreign_writers=True) as store, hinted(store):
        await until(lambda: log.member.paused)
        log.member.put("ro-1", 0)
        await asyncio.sleep(0.05)
        assert log.member.committed == {} and log.member.asked == []
        assert await store.dequeue_rollout("w", wait_seconds=0.3) is None
        assert log.member.committed == {0: 1}
        await until(lambda: log.member.paused)


def never() -> Membership:
    raise StorageError("the broker does not answer")


def late() -> Membership:
    time.sleep(3)
    return FakeMember()


@pytest.mark.parametrize("joining", [None, never, late], ids=["silent", "unreachable", "rebalancing"])
async def test_26_without_any_hint_the_queue_drains_within_the_slack(joining: Any) -> None:
    waits: list[float] = []
    with closing(GroupLog(joining)) as log, store_on(log, foreign_writers=True) as store, hinted(store):
        for _ in range(20):
            waiting = asyncio.ensure_future(store.dequeue_rollout("w", wait_seconds=5))
            await asyncio.sleep(0.01)
            began = time.monotonic()
            await store.enqueue_rollout("x")
            assert await waiting is not None
            waits.append(time.monotonic() - began)
    # Half of them: the machine may be busy with something else for a moment.
    assert STEAL_SECONDS <= sorted(waits)[10] < 0.050, waits


def test_only_what_lies_below_everything_open_is_committed() -> None:
    offsets, one, two = Offsets(), ("tasks", 1), ("tasks", 2)
    for offset in range(3):
        offsets.opened(one, offset)
    offsets.opened(two, 7)
    assert offsets.due() == []
    offsets.done(one, 1)
    assert offsets.due() == []
    offsets.done(one, 0)
    assert offsets.due() == [(one, 2)] and offsets.due() == []
    offsets.done(one, 2)
    offsets.done(two, 7)
    assert offsets.due() == [(one, 3), (two, 8)]
    offsets.opened(two, 7)  # dealt anew, from the commit before
    assert offsets.due() == []
    offsets.done(two, 7)
    assert offsets.due() == [(two, 8)]
