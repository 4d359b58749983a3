"""Decision 22 through every door: what was acknowledged before the end lies below the end's watermark and can be read."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import pytest

import agentlightning as agl
from agentlightning.core.log.topics import SPANS
from agentlightning.core.model.store_interface import LightningStore
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.client.client import LightningStoreClient


def otlp(started: agl.AttemptedRollout, span_id: str) -> dict[str, Any]:
    """An OTLP request with one span, as JSON."""
    owner = {"rollout_id": started.rollout_id, "attempt_id": started.attempt.attempt_id}
    attributes = [{"key": f"agentlightning.{name}", "value": {"stringValue": value}} for name, value in owner.items()]
    span = {"name": "work", "traceId": "0a" * 16, "spanId": span_id, "startTimeUnixNano": "1500000000"}
    return {"resourceSpans": [{"resource": {"attributes": attributes}, "scopeSpans": [{"spans": [span]}]}]}


@pytest.mark.parametrize("end", ["succeeded", "cancelled"])
async def test_22_spans_of_otlp_client_and_store_are_covered_by_the_end(
    http: aiohttp.ClientSession, client: LightningStoreClient, store: LightningStore, end: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert isinstance(store, EventLogStore)
    log, marks = store.engine.log, list[int]()
    read_key, watermark = log.read_key, store.engine.spans.watermark

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return read_key(*args, **options)

    async def noted(rollout_id: str) -> int:
        marks.append(await watermark(rollout_id))
        return marks[-1]

    monkeypatch.setattr(log, "read_key", slow)
    monkeypatch.setattr(store.engine.spans, "watermark", noted)
    started = await client.start_rollout("x")
    acknowledged: set[str] = set()
    ending = asyncio.Event()

    async def writer(number: int) -> None:
        count = 0
        while not ending.is_set():
            count += 1
            span_id = f"{number}{count:015x}"
            if number == 1:
                async with http.post("/v1/traces", json=otlp(started, span_id)) as answer:
                    assert answer.status == 200
            else:
                made = agl.Span.from_attributes(
                    attributes={}, rollout_id=started.rollout_id, attempt_id=started.attempt.attempt_id, span_id=span_id
                )
                assert await (client if number == 2 else store).add_span(made) is not None
            acknowledged.add(span_id)

    writers = [asyncio.ensure_future(writer(number)) for number in (1, 2, 3)]
    while len({one[0] for one in acknowledged}) < 3 or len(acknowledged) < 12:
        await asyncio.sleep(0.005)
    before = set(acknowledged)
    if end == "cancelled":
        await client.update_rollout(started.rollout_id, status="cancelled")
    else:
        await client.update_attempt(started.rollout_id, "latest", status="succeeded")
    found = {one.span_id for one in await client.query_spans(started.rollout_id)}
    ending.set()
    await asyncio.gather(*writers)
    assert before <= found
    below = [record for record in log.read(SPANS, 0, 0) if record.offset < marks[-1]]
    assert len(below) >= len(before) >= 12
    assert marks and all(any(one.encode() in record.value for record in below) for one in before)
