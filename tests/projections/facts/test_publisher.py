"""What a log on a broker is given: hints by who wrote the event, facts and dead letters by the one that leads."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.errors import UnknownOutcome
from agentlightning.core.log.dead_letter import decode_letter
from agentlightning.core.log.interface import Ack, Log, NewRecord, Record
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL, DEAD, FACTS, SNAPSHOTS, TASKS, partition_of
from agentlightning.projections.facts import feed, publisher
from agentlightning.projections.facts.derived_topic import DerivedTopic
from agentlightning.projections.store.store import EventLogStore

from ..store.tools import Unclosed, begin, claim, store_on

PARTITIONS = 3


class PublishingMemoryLog(Unclosed):
    """A memory log with `tasks` and `facts` of its own. `trouble`: what becomes of the next publications."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.kept: dict[tuple[str, int], list[NewRecord]] = defaultdict(list)
        self.trouble: list[str] = []
        self._gate = threading.Lock()

    def partitions_published(self, topic: str) -> int:
        return PARTITIONS

    def publish(self, topic: str, partition: int, records: Sequence[NewRecord], done: Any) -> None:
        with self._gate:
            trouble = self.trouble.pop() if self.trouble and topic == FACTS else ""
            if trouble != "lost":
                self.kept[topic, partition] += records
        result = UnknownOutcome(trouble) if trouble else Ack(0, len(records))
        threading.Thread(target=done, args=(result,)).start()

    def published(self, topic: str) -> list[NewRecord]:
        return [one for part in range(PARTITIONS) for one in self.kept[topic, part]]


async def until(happened: Callable[[], bool], what: str) -> None:
    for _ in range(2000):
        if happened():
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"never: {what}")


def derived(log: Any, topic: str) -> list[Record]:
    reader, found = DerivedTopic(log, topic), []
    while records := reader.read():
        found.extend(records)
    return found


def ids(records: Iterable[NewRecord | Record]) -> list[str]:
    return [dict(record.headers)["id"] for record in records]


def read_once(log: PublishingMemoryLog, topic: str) -> dict[str, list[tuple[str, bytes]]]:
    """Key -> (id, value), as a reader has them that drops what is not above the highest seen in its partition."""
    found: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    for part in range(PARTITIONS):
        highest = (-1, -1)
        for record in log.kept[topic, part]:
            assert partition_of(record.key, PARTITIONS) == part
            position, index = dict(record.headers)["id"].split("/")
            if (int(position), int(index)) > highest:
                highest = (int(position), int(index))
                found[record.key].append((dict(record.headers)["id"], record.value))
    return found


def by_key(records: Sequence[Record]) -> dict[str, list[tuple[str, bytes]]]:
    found: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    for record in records:
        found[record.key].append((dict(record.headers)["id"], record.value))
    return found


async def work(store: EventLogStore, count: int, status: Any = "succeeded") -> None:
    for number in range(count):
        attempted = await begin(store, None, f"w{number % 3}")
        await store.update_attempt(attempted.rollout_id, "latest", status=status)


async def all_published(log: PublishingMemoryLog) -> None:
    wanted = set(ids(derived(log, FACTS)))
    await until(lambda: wanted <= set(ids(log.published(FACTS))), "every fact is published")


async def test_facts_and_hints_are_those_that_are_derived_elsewhere() -> None:
    log = PublishingMemoryLog(MemoryLog())
    with store_on(log, foreign_writers=True) as store:
        await store.add_resources({"p": agl.PromptTemplate(template="x", engine="f-string")})
        await work(store, 5)
        await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in range(40)])
        await all_published(log)
    assert read_once(log, FACTS) == by_key(derived(log, FACTS))
    assert read_once(log, TASKS) == by_key(derived(log, TASKS)) and len(log.published(TASKS)) == 45
    one = log.published(TASKS)[0]
    assert dict(one.headers).keys() == {"t", "id", "position"}
    assert json.loads(one.value)["rollout_id"] == one.key


async def test_a_hint_is_written_by_the_node_that_made_the_rollout_claimable() -> None:
    inner = MemoryLog()
    one, two = PublishingMemoryLog(inner), PublishingMemoryLog(inner)
    with store_on(one, foreign_writers=True) as first, store_on(two, foreign_writers=True) as second:
        enqueued = await first.enqueue_rollout("x")
        await second.wait_position(first.position())
        claimed = await claim(second, "w")
        config = agl.RolloutConfig(max_attempts=2, retry_condition=["failed"])
        await second.update_rollout(enqueued.rollout_id, config=config)
        await second.update_attempt(claimed.rollout_id, "latest", status="failed")
        await first.wait_position(second.position())
    assert [json.loads(record.value)["data"] for record in one.published(TASKS)] == [
        {"sequence_id": 1, "status": "queuing"}
    ]
    assert [json.loads(record.value)["data"] for record in two.published(TASKS)] == [
        {"sequence_id": 2, "status": "requeuing"}
    ]


async def test_28_overlapping_publishers_leave_every_fact_once() -> None:
    log = PublishingMemoryLog(MemoryLog())
    with store_on(log, foreign_writers=True) as first, store_on(log, foreign_writers=True) as second:
        for store in (first, second):
            store.engine.cluster.publisher._leads = lambda: True
        await asyncio.gather(work_apart(first, 30), work_apart(second, 30))
        await second.wait_position(first.position())
        await all_published(log)
    assert len(log.published(FACTS)) > len(derived(log, FACTS)), "both published"
    assert read_once(log, FACTS) == by_key(derived(log, FACTS))


async def work_apart(store: EventLogStore, count: int) -> None:
    for number in range(count):
        await store.start_rollout(number)


@pytest.mark.parametrize("trouble", ["lost", "unknown"])
async def test_28_what_was_not_acknowledged_is_published_again_in_order(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "RETRY_SECONDS", 0.02)
    log = PublishingMemoryLog(MemoryLog())
    log.trouble = [trouble] * 4
    with store_on(log, foreign_writers=True) as store:
        await work(store, 10)
        await all_published(log)
    assert not log.trouble and read_once(log, FACTS) == by_key(derived(log, FACTS))


async def test_28_the_next_leader_goes_on_where_the_last_one_stopped() -> None:
    log = PublishingMemoryLog(MemoryLog())
    for _ in range(3):
        with store_on(log, foreign_writers=True) as store:
            await until(lambda: store.engine.cluster.leadership.leads, "it leads")
            await work(store, 4)
    published = ids(log.published(FACTS))
    assert len(published) == len(set(published)), "a leader that left in peace published everything, once"
    assert read_once(log, FACTS) == by_key(derived(log, FACTS))
    cursor = json.loads(log.read_key(SNAPSHOTS, "facts")[-1].value)
    assert cursor["position"] >= max(int(one.split("/")[0]) for one in published)


async def test_28_what_lies_further_back_than_memory_is_folded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "KEPT_RECORDS", 8)
    log = PublishingMemoryLog(MemoryLog())
    with store_on(log._log, foreign_writers=True) as quiet:
        await work(quiet, 30)
    with store_on(log, foreign_writers=True) as store:
        await work(store, 1)
        await all_published(log)
    assert read_once(log, FACTS) == by_key(derived(log, FACTS))


async def test_28_a_cursor_of_a_history_that_is_gone_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    log = PublishingMemoryLog(MemoryLog())
    value = {"log_id": log.log_id, "position": 2, "fingerprint": "00" * 8, "writer": "x"}
    ready = threading.Event()
    with store_on(log._log, foreign_writers=True) as quiet:
        await work(quiet, 3)
    record = NewRecord("facts", json.dumps(value).encode(), 0)
    log.append(SNAPSHOTS, 0, [record], lambda _: ready.set())
    assert ready.wait(5)
    with store_on(log, foreign_writers=True):
        await all_published(log)
    assert "a history that is gone" in caplog.text


async def test_rollouts_that_were_given_up_and_poison_become_dead_letters() -> None:
    log = PublishingMemoryLog(MemoryLog())
    with store_on(log, foreign_writers=True) as store:
        config = agl.RolloutConfig(max_attempts=2, retry_condition=["failed"])
        rollout = await store.enqueue_rollout("x", config=config)
        for number in range(2):
            await claim(store)
            error = {"error": f"ValueError: {number}"}
            await store.update_attempt(rollout.rollout_id, "latest", status="failed", metadata=error)
        chosen = await store.enqueue_rollout("failed by hand")
        await store.update_rollout(chosen.rollout_id, status="failed")
        log.append(CONTROL, 0, [NewRecord("", b"\xc1 rubbish", 5)], lambda _: None)
        await until(lambda: len(log.read(DEAD, 0, 0)) >= 2, "two letters")
        await work(store, 1)
        await all_published(log)
        given_up, poison = [decode_letter(record) for record in log.read(DEAD, 0, 0)]
        assert (given_up.kind, given_up.rollout_id, given_up.tries) == ("rollout", rollout.rollout_id, 2)
        assert given_up.reason == "ValueError: 1 (attempt 2 was the last one and ended as failed)"
        assert given_up.id.endswith("/0")
        assert given_up.position is not None and given_up.attempt_id is not None
        assert (poison.kind, poison.source, poison.data["value"]) == ("record", "control/0", b"\xc1 rubbish".hex())
        assert poison.position is not None and poison.position == poison.data["offset"]
        entries = await store.query_dead_letters()
        assert [entry["letter"]["id"] for entry in entries] == [given_up.id, poison.id] or len(entries) == 2
    with store_on(log, foreign_writers=True) as again:
        again.engine.cluster.publisher._cursor = -1
        await work(again, 1)
        await asyncio.sleep(0.1)
        assert len(await again.query_dead_letters()) == 2, "told again under the same ids"


async def test_hints_that_cannot_be_written_keep_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(PublishingMemoryLog):
        def publish(self, topic: str, partition: int, records: Sequence[NewRecord], done: Any) -> None:
            if topic == TASKS:
                raise agl.LogError("no such topic")
            super().publish(topic, partition, records, done)

    log = Refusing(MemoryLog())
    with store_on(log, foreign_writers=True) as store:
        await work(store, 3)
        await all_published(log)
    assert caplog.text.count("Hints are not written") == 1
