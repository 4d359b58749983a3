"""Numbers and texts from the wire that no event can carry are refused, and nothing of them is in the log."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import agentlightning as agl
from agentlightning.core.errors import AgentLightningError
from agentlightning.core.events import codec
from agentlightning.core.events.run_events import decode_run
from agentlightning.core.log.dead_letter import decode_letter
from agentlightning.core.log.topics import CONTROL, DEAD, SPANS
from agentlightning.projections.spans.span_log import decode
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.api.encoding import status_of
from agentlightning.rest.api.routes import METHODS
from agentlightning.rest.server.invoke import Calls
from tests.projections.store.tools import span

NUMBERS = [
    2**31, 2**31 + 1, 2**53, 2**62, 2**62 + 1, 2**63 - 1, 2**63, 2**64, 10**40, -1, -(2**53), -(2**62) - 1, -(2**63), -(10**40),
    math.inf, -math.inf, math.nan, 1e300, 0.5,
]  # fmt: skip
TEXTS = ["\ud800", "a" * 2000, "\x00", ""]
CONFIG = ("timeout_seconds", "unresponsive_seconds", "max_attempts", "retry_backoff_seconds")


def odd_calls(begun: agl.AttemptedRollout) -> Iterator[tuple[str, dict[str, Any]]]:
    """Calls with one odd number or text each, for every field of a mutation that goes into a record."""
    key: dict[str, Any] = {"rollout_id": begun.rollout_id, "attempt_id": begun.attempt.attempt_id}
    plain = span(begun).model_dump()
    letter = {"id": "x", "kind": "rollout", "source": "s", "reason": "r", "time": 1.0}
    for odd in NUMBERS:
        for field in CONFIG:
            yield "enqueue_rollout", {"input": 1, "config": {field: odd}}
            yield "update_rollout", {"rollout_id": begun.rollout_id, "config": {field: odd}}
        yield "update_attempt", {**key, "last_heartbeat_time": odd}
        yield "add_span", {"span": {**plain, "span_id": f"n{odd}", "sequence_id": odd}}
        yield "add_span", {"span": {**plain, "span_id": f"t{odd}", "start_time": odd}}
        for field in ("seed", "train_size", "val_size", "resources_version"):
            yield "record_run_event", {"type": "run.opened", "fields": {field: odd}}
        yield "record_run_event", {"type": "run.closed", "run_id": "r", "fields": {"outcome": "x", "resources_version": odd}}
        yield "record_run_event", {"type": "algorithm.decided", "run_id": "r", "fields": {"kind": "k", "based_on": odd}}
        for field in ("time", "tries", "position"):
            yield "add_dead_letter", {"letter": {**letter, field: odd}}
        yield "dequeue_rollout", {"wait_seconds": odd if odd < 0 else 0}
    for odd in TEXTS:
        yield "enqueue_rollout", {"input": 1, "resources_id": odd}
        yield "start_rollout", {"input": odd, "worker_id": odd}
        yield "update_attempt", {**key, "worker_id": odd}
        yield "update_worker", {"worker_id": odd, "incarnation": odd}
        yield "update_resources", {"resources_id": odd, "resources": {}}
        yield "add_span", {"span": {**plain, "span_id": odd}}
        yield "record_run_event", {"type": "run.opened", "run_id": odd, "fields": {"name": odd}}
        yield "record_run_event", {"type": "algorithm.decided", "run_id": "r", "fields": {"kind": odd}}
        for field in ("id", "source", "reason", "rollout_id"):
            yield "add_dead_letter", {"letter": {**letter, field: odd}}


async def test_what_no_event_can_carry_is_refused_and_never_written(store: EventLogStore) -> None:
    calls = Calls(store)
    begun = await store.start_rollout("x")
    refused = 0
    for name, args in odd_calls(begun):
        try:
            await calls.run(METHODS[name], args, None)
        except (AgentLightningError, ValueError, TypeError) as error:
            refused += 1
            assert 400 <= status_of(error) < 500, (name, args, error)
    assert refused > 150
    log = store.engine.log
    for record in log.read(CONTROL, 0, 0, 100_000):
        assert decode_run(record.value) is not None or codec.decode(record.value)
    for topic, read in ((SPANS, lambda record: decode(record.value)), (DEAD, decode_letter)):
        for partition in range(log.partitions(topic)):
            for record in log.read(topic, partition, 0, 100_000):
                read(record)
    assert {verdict.reason for verdict in store.engine.node.state.verdicts._verdicts.values()} <= {""}  # pyright: ignore
    assert await store.add_span(span(begun)) and len(await store.query_spans(begun.rollout_id)) > 1
