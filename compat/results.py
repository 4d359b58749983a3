"""Results of the first protocol: what a client posted, as spans and a final status in the log, and back."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from pydantic import ValidationError

from ..core.errors import NotFound
from ..core.ids import span_id as new_span_id
from ..core.model.rollout import Attempt, AttemptedRollout, AttemptStatus, Rollout
from ..core.model.semconv import AGL_OBJECT, LightningSpanAttributes, RewardAttributes
from ..core.model.span import Span, TraceStatus
from ..core.model.status import FINISHED, QUEUING
from ..core.model.store_interface import LightningStore
from ..core.spans.rewards import checked_reward
from .task_protocol import RolloutLegacy, check_posted

__all__ = ["ATTEMPT_KEY", "ERROR_KEY", "LIMIT_KEY", "as_trace", "keep_result", "posted_in"]

log = logging.getLogger("agentlightning.server")

ATTEMPT_KEY = "agentlightning.attempt_id"
"""In the metadata of a task: which attempt its client runs."""
LIMIT_KEY = "agentlightning.timeout_seconds"
"""There too: after how many seconds the task is handed to another client."""
ERROR_KEY = "error"
"""In the metadata of a posted rollout: why the agent failed. Without it the rollout succeeded."""
_RESULT_KEY = "agentlightning.result"
_TYPE = "agentlightning.RolloutLegacy"
_REWARD = f"{LightningSpanAttributes.REWARD.value}.0."


async def keep_result(store: LightningStore, posted: RolloutLegacy) -> bool:
    """Put what a client posted into the log: its spans, then one that holds the rest, then the outcome.

    The first result that arrives for a rollout counts, whichever of its attempts made it; True for that one.
    A later one is kept beside it and changes nothing: False. Raises `NotFound` for an unknown rollout,
    and `InvalidInput` for a reward that is no finite number.
    """
    check_posted(posted)
    rollout = await store.get_rollout_by_id(posted.rollout_id)
    if rollout is None:
        raise NotFound.rollout(posted.rollout_id)
    before = rollout.status in FINISHED
    attempt = await _attempt_of(store, rollout, posted)
    spans: list[Span] = []
    unreadable: list[dict[str, Any]] = []
    for item in posted.trace or []:
        span = _span_of(item, rollout.rollout_id, attempt.attempt_id)
        spans.append(span) if span is not None else unreadable.append(item)
    if unreadable:
        log.warning("%d span(s) of %s are no spans; they are kept as they are", len(unreadable), rollout.rollout_id)
    result = _result_span(posted, unreadable, attempt)
    await store.add_many_spans([*spans, result])
    if not before:
        await _end(store, rollout.rollout_id, attempt, posted, result.span_id)
    return not before


async def _attempt_of(store: LightningStore, rollout: Rollout, posted: RolloutLegacy) -> Attempt:
    wanted = posted.task.metadata.get(ATTEMPT_KEY) if posted.task is not None else None
    if wanted is not None:
        for attempt in await store.query_attempts(rollout.rollout_id):
            if attempt.attempt_id == wanted:
                return attempt
    if isinstance(rollout, AttemptedRollout):
        return rollout.attempt
    # It was not claimed: the client that posts did the work all the same.
    return (await store.start_attempt(rollout.rollout_id)).attempt


async def _end(store: LightningStore, rollout_id: str, attempt: Attempt, posted: RolloutLegacy, span_id: str) -> None:
    error = posted.metadata.get(ERROR_KEY)
    status: AttemptStatus = "succeeded" if error is None else "failed"
    notes: dict[str, Any] = {**(attempt.metadata or {}), _RESULT_KEY: span_id}
    if error is not None:
        notes[ERROR_KEY] = str(error)
    await store.update_attempt(rollout_id, attempt.attempt_id, status=status, metadata=notes)
    rollout = await store.get_rollout_by_id(rollout_id)
    if rollout is None or rollout.status in FINISHED:
        return
    # The attempt had expired, and the task is queued again or claimed by another worker by now.
    notes["agentlightning.result_of"] = attempt.attempt_id
    if rollout.status in QUEUING or not isinstance(rollout, AttemptedRollout):
        rollout = await store.start_attempt(rollout_id)
    await store.update_attempt(rollout_id, rollout.attempt.attempt_id, status=status, metadata=notes)


def _result_span(posted: RolloutLegacy, unreadable: list[dict[str, Any]], attempt: Attempt) -> Span:
    rest = posted.model_copy(update={"trace": unreadable or None, "task": None})
    attributes: dict[str, Any] = {
        LightningSpanAttributes.OBJECT_TYPE.value: _TYPE,
        LightningSpanAttributes.OBJECT_JSON.value: rest.model_dump_json(),
    }
    if posted.final_reward is not None:
        # Readers of rewards find the final one here, after all spans of the client.
        attributes[_REWARD + RewardAttributes.REWARD_NAME.value] = "primary"
        attributes[_REWARD + RewardAttributes.REWARD_VALUE.value] = posted.final_reward
    now = time.time()
    return Span.from_attributes(
        attributes=attributes,
        rollout_id=posted.rollout_id,
        attempt_id=attempt.attempt_id,
        sequence_id=0,  # the store gives the number
        name=AGL_OBJECT,
        start_time=now,
        end_time=now,
    )


def posted_in(attempt: Attempt, spans: Sequence[Span]) -> tuple[RolloutLegacy, list[Span]] | None:
    """What was posted as the outcome of this attempt, without its task, and the spans that came with it.

    None where the attempt ended in another way: by a runner of today, or by its time.
    """
    wanted = (attempt.metadata or {}).get(_RESULT_KEY)
    found = next((span for span in spans if span.span_id == wanted), None)
    if wanted is None or found is None:
        return None
    posted = RolloutLegacy.model_validate_json(str(found.attributes[LightningSpanAttributes.OBJECT_JSON.value]))
    with_it = [
        span
        for span in spans
        if span.attempt_id == found.attempt_id
        and span.attributes.get(LightningSpanAttributes.OBJECT_TYPE.value) != _TYPE
    ]
    return posted, with_it


def _span_of(item: Mapping[str, Any], rollout_id: str, attempt_id: str) -> Span | None:
    """A span of today or one as OpenTelemetry writes it to JSON; None for neither."""
    ids = {"rollout_id": rollout_id, "attempt_id": attempt_id, "sequence_id": 0}
    try:
        fields = dict(item) if "trace_id" in item else _from_otel_json(item)
        span = Span.model_validate({**fields, **ids})
        checked_reward(span.name, span.attributes)
        return span
    except (ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
        log.debug("Not a span: %s", error)
        return None


def _from_otel_json(item: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of what `ReadableSpan.to_json` writes. KeyError and others for anything else."""
    context = cast("Mapping[str, Any]", item["context"])
    trace_id, own = _hex(context["trace_id"], 32), _hex(context["span_id"], 16)
    parent = item.get("parent_id")
    status = cast("Mapping[str, Any]", item.get("status") or {})
    resource = cast("Mapping[str, Any]", item.get("resource") or {})
    return {
        "trace_id": trace_id,
        "span_id": own or new_span_id(),
        "parent_id": _hex(parent, 16) if parent else None,
        "name": item["name"],
        "status": TraceStatus(
            status_code=status.get("status_code", "UNSET"), description=status.get("description")
        ),
        "attributes": item.get("attributes") or {},
        "events": [
            {**event, "attributes": event.get("attributes") or {}, "timestamp": _when(event["timestamp"])}
            for event in cast("list[dict[str, Any]]", item.get("events") or [])
        ],
        "links": [],
        "start_time": _when(item.get("start_time")),
        "end_time": _when(item.get("end_time")),
        "context": {"trace_id": trace_id, "span_id": own, "is_remote": False, "trace_state": {}},
        "parent": None,
        "resource": {
            "attributes": resource.get("attributes") or {},
            "schema_url": resource.get("schema_url") or "",
        },
        "kind": str(item.get("kind", "SpanKind.INTERNAL")).removeprefix("SpanKind."),
    }


def _hex(value: Any, digits: int) -> str:
    number = int(str(value), 16)
    return f"{number:0{digits}x}"


def _when(value: Any) -> float | None:
    """Unix seconds of a time as OpenTelemetry writes it."""
    if value is None or isinstance(value, (int, float)):
        return value
    # Python 3.10 reads no "Z".
    return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()


def as_trace(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Spans as the dicts of `RolloutLegacy.trace`."""
    return [json.loads(span.model_dump_json()) for span in spans]
