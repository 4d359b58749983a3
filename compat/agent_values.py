"""What an agent of the first generation returned, as the rollout that its runner posts."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, cast

from ..core.model.rollout import Triplet
from ..core.model.scalars import number
from ..core.model.span import Span, reads_like_a_span
from ..core.spans.readers import find_final_reward
from .task_protocol import RolloutLegacy, Task, check_posted

__all__ = ["as_posted"]

_log = logging.getLogger(__name__)


def as_posted(value: Any, task: Task, spans: Sequence[Span], exporter: Any, prefix: str) -> RolloutLegacy:
    """A number, triplets, spans (of either kind, or as dicts), a `RolloutLegacy` or None, as what is posted.

    `spans` are what the tracer recorded; they are the trace unless the agent returned one, and triplets are made of
    them unless the agent returned some. Without a reward of its own the rollout has that of its last triplet, or the
    last one that was emitted. TypeError for anything else, ValueError for NaN and infinities as rewards.
    """
    rollout = RolloutLegacy(rollout_id=task.rollout_id, task=task)
    returned: Sequence[Any] = ()
    if isinstance(value, RolloutLegacy):
        rollout = value.model_copy(update={"rollout_id": task.rollout_id, "task": task})
    elif number(value) is not None:
        if isinstance(value, bool):
            _log.warning("%s Reward is not a number, got: bool. Auto converting to float.", prefix)
        rollout.final_reward = number(value)
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        if items and all(isinstance(item, Triplet) for item in items):
            rollout.triplets = items
        else:
            rollout.trace, returned = _trace(items, task)
    elif value is not None:
        raise TypeError(
            "Invalid raw result type. It's expected to be none, a number, or a list of triplets or spans, "
            f"but got: {type(value).__name__}"
        )
    if rollout.trace is None and spans:
        rollout.trace, returned = _trace(list(spans), task)
    if returned and rollout.triplets is None:
        rollout.triplets = _triplets(returned, exporter, prefix)
    if rollout.final_reward is None:
        last = rollout.triplets[-1].reward if rollout.triplets else None
        rollout.final_reward = last if last is not None else find_final_reward(spans)
    check_posted(rollout)
    return rollout


def _trace(items: list[Any], task: Task) -> tuple[list[dict[str, Any]], list[Any]]:
    """The spans as dicts, and those of them that an adapter can read."""
    dicts: list[dict[str, Any]] = []
    readable: list[Any] = []
    for item in items:
        if isinstance(item, Span):
            dicts.append(json.loads(item.model_dump_json()))
            readable.append(item)
        elif reads_like_a_span(item):
            span = Span.from_opentelemetry(item, task.rollout_id, "", len(dicts))
            dicts.append(json.loads(span.model_dump_json()))
            readable.append(span)
        elif isinstance(item, dict):
            dicts.append(cast("dict[str, Any]", item))
        else:
            raise TypeError(f"A list of results holds triplets or spans of one kind, not {type(item).__name__}")
    return dicts, readable


def _triplets(spans: Sequence[Any], exporter: Any, prefix: str) -> list[Triplet] | None:
    if exporter is None:
        return None
    convert = getattr(exporter, "adapt", None) or exporter.export
    try:
        return convert(spans)
    except Exception as error:
        # The reward and the trace are worth having without them.
        _log.warning("%s No triplets: %s: %s", prefix, type(error).__name__, error)
        return None
