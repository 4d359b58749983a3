"""What callers get wrong: one sentence for them, nothing in the log, and nobody waits for an answer that cannot come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.errors import InvalidInput, LogFull
from agentlightning.core.events.schema import TimePassed
from agentlightning.core.log.interface import NewRecord
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.projections.store.store import EventLogStore

from ..store.logs import HoldingLog, Unclosed
from ..store.tools import begin, claim, control_values, ids, span, store_on

HALF = "\ud800"
NAN = float("nan")


def _config(**fields: Any) -> agl.RolloutConfig:
    """A config whose fields were assigned, which nothing checks."""
    config = agl.RolloutConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def _llm() -> agl.LLM:
    model = agl.LLM(endpoint="http://x", model="m")
    model.sampling_parameters = None  # type: ignore[assignment]
    return model


Wrong = Callable[[Any, Any], Awaitable[Any]]
WRITES: dict[str, Wrong] = {
    "max_attempts": lambda s, a: s.enqueue_rollout(1, config=agl.RolloutConfig(max_attempts=2**40)),
    "retry": lambda s, a: s.enqueue_rollout(1, config=_config(retry_condition=["bogus"])),
    "attempts": lambda s, a: s.start_rollout(1, config=_config(max_attempts="x")),
    "config": lambda s, a: s.update_rollout(a.rollout_id, config=5),
    "metadata": lambda s, a: s.enqueue_rollout(1, metadata=5),
    "metadata keys": lambda s, a: s.enqueue_rollout(1, metadata={1: 2}),
    "new metadata": lambda s, a: s.update_rollout(a.rollout_id, metadata=[1]),
    "attempt metadata": lambda s, a: s.update_attempt(a.rollout_id, "latest", metadata=5),
    "mode": lambda s, a: s.enqueue_rollout(1, mode=["train"]),
    "resources": lambda s, a: s.enqueue_rollout(1, resources_id=HALF),
    "no resources": lambda s, a: s.enqueue_rollout(1, resources_id=""),
    "long resources": lambda s, a: s.enqueue_rollout(1, resources_id="x" * 1001),
    "new resources": lambda s, a: s.update_rollout(a.rollout_id, resources_id=5),
    "rollout": lambda s, a: s.update_rollout([], status="failed"),
    "status": lambda s, a: s.update_rollout(a.rollout_id, status=[]),
    "batch": lambda s, a: s.enqueue_many_rollouts([1]),
    "no batch": lambda s, a: s.enqueue_many_rollouts("ab"),
    "worker": lambda s, a: s.start_rollout(1, worker_id=5),
    "worker of an attempt": lambda s, a: s.start_attempt(a.rollout_id, worker_id=5),
    "new worker": lambda s, a: s.update_attempt(a.rollout_id, "latest", worker_id=5),
    "beat": lambda s, a: s.update_attempt(a.rollout_id, "latest", last_heartbeat_time="now"),
    "no beat": lambda s, a: s.update_attempt(a.rollout_id, "latest", last_heartbeat_time=NAN),
    "claimer": lambda s, a: s.dequeue_rollout(5),
    "half a claimer": lambda s, a: s.dequeue_rollout(HALF),
    "incarnation": lambda s, a: s.dequeue_rollout(incarnation=5),
    "command": lambda s, a: s.dequeue_rollout(command_id=5),
    "wait": lambda s, a: s.dequeue_rollout(wait_seconds=NAN),
    "limit": lambda s, a: s.dequeue_many_rollouts(limit="3"),
    "resources id": lambda s, a: s.update_resources(5, {"p": "x"}),
    "resource": lambda s, a: s.add_resources({"llm": _llm()}),
    "heartbeat": lambda s, a: s.update_worker(5),
    "nobody": lambda s, a: s.update_worker(""),
    "beating": lambda s, a: s.update_worker("w", attempts=["ab"]),
    "span": lambda s, a: s.add_span({"name": "x"}),
    "spans": lambda s, a: s.add_many_spans(span(a)),
    "otel": lambda s, a: s.add_otel_span(a.rollout_id, a.attempt.attempt_id, None),
    "number": lambda s, a: s.add_span(span(a, sequence_id=2**63)),
    "huge number": lambda s, a: s.add_many_spans([span(a), span(a, sequence_id=2**70)]),
    "span id": lambda s, a: s.add_span(span(a, span_id=HALF)),
    "pairs": lambda s, a: s.get_many_span_sequence_ids([("x",)]),
    "pair": lambda s, a: s.get_next_span_sequence_id(5, 6),
}
READS: dict[str, Wrong] = {
    "rollout": lambda s, a: s.get_rollout_by_id([]),
    "attempts": lambda s, a: s.query_attempts(5),
    "latest": lambda s, a: s.get_latest_attempt(None),
    "spans": lambda s, a: s.query_spans(5),
    "one id": lambda s, a: s.query_rollouts(a.rollout_id),
    "one status": lambda s, a: s.query_rollouts(status_in="running"),
    "status": lambda s, a: s.query_rollouts(status_in=[{}]),
    "limit": lambda s, a: s.query_rollouts(limit=None),
    "offset": lambda s, a: s.query_attempts(a.rollout_id, offset=1.5),
    "worker": lambda s, a: s.get_worker_by_id([]),
    "worker status": lambda s, a: s.query_workers(status_in="busy"),
    "version": lambda s, a: s.get_resources_by_id("x", "1"),
    "wait for one": lambda s, a: s.wait_for_rollouts(a.rollout_id),
    "wait for ever": lambda s, a: s.wait_for_rollouts([a.rollout_id], timeout=NAN),
    "wait": lambda s, a: s.wait_for_rollouts([a.rollout_id], timeout="1"),
    "since": lambda s, a: anext(s.subscribe(since="1")),
    "types": lambda s, a: anext(s.subscribe([5])),
}


@pytest.fixture
async def store() -> AsyncIterator[EventLogStore]:
    with InMemoryLightningStore() as store:
        yield store


@pytest.mark.parametrize("wrong", [*WRITES.values(), *READS.values()], ids=[*WRITES, *READS])
async def test_what_cannot_be_used_is_a_value_error_and_leaves_no_record(
    store: EventLogStore, wrong: Wrong
) -> None:
    attempted = await begin(store)
    await store.enqueue_rollout("next")
    records = control_values(store.engine.log)
    with pytest.raises(ValueError) as refused:
        await asyncio.wait_for(wrong(store, attempted), 2)
    assert "Traceback" not in str(refused.value) and str(refused.value)
    assert control_values(store.engine.log) == records
    stored = await store.add_span(span(attempted))
    assert stored is not None and stored.sequence_id == 1, "a refused span uses up no number"
    assert (await store.query_spans(attempted.rollout_id)).total == 1
    assert await store.get_latest_resources() is None
    assert (await claim(store)).input == "next"


@pytest.mark.parametrize(("field", "value"), [("name", None), ("status", 5), ("attributes", {"k": None})])
async def test_a_span_that_was_spoilt_after_it_was_made_does_not_spoil_its_rollout(
    store: EventLogStore, field: str, value: Any
) -> None:
    attempted = await begin(store)
    spoilt = span(attempted)
    setattr(spoilt, field, value)
    with pytest.raises(ValueError):
        await store.add_many_spans([span(attempted), spoilt])
    assert (await store.query_spans(attempted.rollout_id)).total == 0


async def test_a_command_that_no_fold_can_read_is_answered(store: EventLogStore) -> None:
    with pytest.raises(InvalidInput):
        await asyncio.wait_for(store.engine.settle(TimePassed(from_ms="0", to_ms=1)), 2)  # type: ignore[arg-type]
    assert (await store.enqueue_rollout("goes on")).status == "queuing"


async def test_nobody_is_a_worker_that_an_attempt_can_be_given_to(store: EventLogStore) -> None:
    await store.enqueue_rollout("x")
    attempted = await claim(store, "w")
    attempt = await store.update_attempt(attempted.rollout_id, "latest", worker_id=None)  # type: ignore[arg-type]
    worker = await store.get_worker_by_id("w")
    assert attempt.worker_id is None and worker is not None and worker.current_rollout_id is None


async def test_a_duplicate_span_is_an_error_line_and_none(
    store: EventLogStore, caplog: pytest.LogCaptureFixture
) -> None:
    attempted = await begin(store)
    sent = await store.add_span(span(attempted))
    assert sent is not None and await store.add_span(sent) is None
    place = f"rollout={sent.rollout_id}, attempt={sent.attempt_id}, span={sent.span_id}"
    assert f"Duplicated span added for {place}. Skipping." in caplog.text


async def test_subscribers_that_leave_are_forgotten(store: EventLogStore) -> None:
    for _ in range(20):
        facts = store.subscribe()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(facts), 0.005)
    assert not store.engine.facts._waiting


@pytest.mark.parametrize(
    "wrong",
    [{"window": 0}, {"archive_after": -1}, {"archive_after": 0}, {"snapshot_every": 0}, {"max_payload_mb": 0},
     {"worker_lost_seconds": NAN}, {"lost_worker_retries": -1}, {"claim_confirm_seconds": "10"}],
)  # fmt: skip
def test_settings_that_no_store_can_keep_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        StoreSettings(**wrong)


class FailsTheSecondClaim(Unclosed):
    """There is room for one claim."""

    claims = 0

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Any) -> None:
        self.claims += topic == CONTROL and any(b"attempt.claimed" in one.value for one in records)
        if self.claims == 2 and topic == CONTROL:
            threading.Thread(target=done, args=(LogFull("no room"),)).start()
        else:
            self._log.append(topic, partition, records, done)


async def test_a_batch_of_claims_that_fails_half_way_hands_out_what_it_claimed() -> None:
    with store_on(FailsTheSecondClaim(MemoryLog())) as store:
        made = await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in range(3)])
        assert ids(await store.dequeue_many_rollouts(limit=3)) == ids(made)[:1]


@pytest.mark.parametrize("first", [True, False], ids=["some resources", "no resources"])
async def test_all_parts_of_a_split_batch_bind_what_the_first_part_bound(first: bool) -> None:
    log = HoldingLog(MemoryLog())
    with store_on(log) as store:
        bound = (await store.add_resources({"p": "old"})).resources_id if first else None
        log.holding = True
        batch = [agl.EnqueueRolloutRequest(input=str(number) * 300_000) for number in range(8)]
        batch[1].resources_id = "chosen"
        enqueuing = asyncio.ensure_future(store.enqueue_many_rollouts(batch))
        await asyncio.to_thread(log.written.acquire)
        publishing = asyncio.ensure_future(store.add_resources({"p": "new"}))
        await asyncio.sleep(0.02)
        log.release()
        made = await enqueuing
        assert [one.resources_id for one in made] == [bound, "chosen", *[bound] * 6]
        kept = await store.query_rollouts(ids(made))
        assert [one.resources_id for one in kept] == [bound, "chosen", *[bound] * 6]
        later = await store.enqueue_rollout("later")
        assert later.resources_id == (await publishing).resources_id
