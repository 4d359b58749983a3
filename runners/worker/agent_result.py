"""The result of an attempt: what the agent returned, stored as spans, and the lint of its trace."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ...core.errors import InvalidInput
from ...core.model.resources import ProxyLLM
from ...core.model.rollout import AttemptedRollout
from ...core.model.scalars import number
from ...core.model.span import Span, SpanCoreFields, reads_like_a_span
from ...core.model.store_interface import LightningStore
from ...core.retry import patiently
from ...core.spans.attributes import full_qualified_name
from ...core.spans.model_calls import candidates_of, distinct_calls
from ...core.spans.rewards import get_reward_value, reward_number
from ..emit import emit_reward
from ..tracing.base import Tracer
from ..tracing.otel import OtelTracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = [
    "FINDINGS",
    "add_spans",
    "bound_span",
    "check_trace",
    "describe_findings",
    "log_findings",
    "reward_span",
    "store_result",
]

_log = logging.getLogger(__name__)
_TOKENS = "response_token_ids"
FINDINGS = {
    "no_model_call": "no model call was recorded",
    "no_reward": "no reward was recorded",
    "no_token_ids": "model calls without token ids were recorded",
    "lost_placeholder": "a prompt has no executor for a value that it was given",
}
"""Every finding and its sentence. In the log an attempt carries the codes, in its metadata under ``trace_lint``."""


def reward_span(result: Any, rollout: AttemptedRollout, prefix: str) -> Span | None:
    """The reward span of a number that the agent returned, the root of a trace of its own; None for anything else.

    InvalidInput for NaN and infinities.
    """
    if number(result) is None:
        return None
    if isinstance(result, bool):
        _log.warning("%s Reward is not a number, got: bool. Auto converting to float.", prefix)
    reward = reward_number(result, f"The reward that the agent returned for rollout {rollout.rollout_id}")
    return bound_span(emit_reward(reward, propagate=False), rollout)


async def store_result(
    result: Any, rollout: AttemptedRollout, store: LightningStore, tracer: Tracer, prefix: str
) -> list[Span]:
    """Store what the agent returned and give all spans of the attempt, or those that it returned.

    None adds nothing. A number becomes a reward span after all others. A list of spans of one kind is stored as it is.
    TypeError or ValueError for the rest, NaN and infinities too.
    """
    if result is None:
        return tracer.get_last_trace()
    reward = reward_span(result, rollout, prefix)
    if reward is not None:
        return [*tracer.get_last_trace(), *await add_spans([reward], store)]
    if not isinstance(result, list):
        kind = full_qualified_name(cast("type[Any]", type(result)))
        raise TypeError(
            "Invalid raw result type. It's expected to be none, float, or a list of ReadableSpan or Span, "
            f"but got: {kind}{_closed(result)}. Return the reward as a number; agl.emit_object and agl.emit_annotation keep "
            "everything else"
        )
    items = cast("list[Any]", result)
    if not items:
        _log.warning("%s The agent returned an empty list: no spans are stored for it.", prefix)
        return []
    if all(isinstance(item, Span) for item in items):
        return await add_spans(items, store)
    if all(isinstance(item, SpanCoreFields) for item in items):
        return await add_spans([bound_span(item, rollout) for item in items], store)
    return await _add_otel(items, rollout, store, tracer, prefix)


def _closed(result: Any) -> str:
    """A hint about a coroutine, which is closed here: Python would warn later, and elsewhere, that it was never awaited."""
    if not inspect.iscoroutine(result):
        return ""
    result.close()
    return " (an asynchronous agent is a function made by `async def`, or a class that overrides rollout_async)"


def bound_span(core: SpanCoreFields, rollout: AttemptedRollout) -> Span:
    """``core`` as a span of the attempt that ``rollout`` carries, the root of a trace of its own."""
    # Sequence 0: the store gives the number.
    return Span.from_core_fields(
        core, rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id, sequence_id=0
    )


async def add_spans(spans: Sequence[Span], store: LightningStore) -> list[Span]:
    """Store them, waiting for a store that cannot be reached; as they were stored, in the same order."""
    if not spans:
        return []
    stored = await patiently(lambda: store.add_many_spans(spans), "Storing spans")
    answered = {span.span_id: span for span in stored}
    return [answered.get(span.span_id, span) for span in spans]


async def _add_otel(
    items: list[Any], rollout: AttemptedRollout, store: LightningStore, tracer: Tracer, prefix: str
) -> list[Span]:
    # Our own spans have a context as well: a list of both kinds is refused.
    if not all(reads_like_a_span(item) and not isinstance(item, Span) for item in items):
        kinds = sorted({type(item).__name__ for item in items})
        raise InvalidInput(
            "Invalid raw result type. It's expected to be a list of ReadableSpan or Span, but got: " + ", ".join(kinds)
        )
    if isinstance(tracer, OtelTracer):
        _log.warning("%s The tracer records OpenTelemetry spans itself; those returned may be there twice.", prefix)
    ids = (rollout.rollout_id, rollout.attempt.attempt_id)
    stored: list[Span] = []
    for item in cast("list[ReadableSpan]", items):
        span = await patiently(lambda item=item: store.add_otel_span(*ids, item), "Storing spans")
        if span is None:
            _log.error("%s The span %r was stored before.", prefix, item.name)
        else:
            stored.append(span)
    return stored




def check_trace(spans: Sequence[Span], resources: Mapping[str, Any], lost: Sequence[str], strict: bool) -> list[str]:
    """Codes of :data:`FINDINGS`, in its order.

    Spans of several instrumentations that are one call count once. Token ids are required where they can be
    expected: of every generation when one of them has some, when a resource is a proxied model, which is how agents are
    trained, and always with ``strict``.
    """
    candidates = candidates_of(spans)
    calls = [one.span for one in (candidates[executor] for executor in distinct_calls(candidates)) if not one.around]
    with_ids = [span for span in calls if span.attributes.get(_TOKENS)]
    expected = strict or bool(with_ids) or any(isinstance(one, ProxyLLM) for one in resources.values())
    found = {
        "no_model_call": not calls,
        "no_reward": all(get_reward_value(span) is None for span in spans),
        "no_token_ids": expected and len(with_ids) < len(calls),
        "lost_placeholder": bool(lost),
    }
    return [code for code in FINDINGS if found[code]]


def log_findings(codes: Sequence[str], lost: Sequence[str], logged: set[str], prefix: str) -> None:
    """One warning for each kind of finding of a runner, not one for each attempt; ``logged`` holds what was."""
    fresh = [code for code in codes if code not in logged]
    logged.update(fresh)
    if fresh:
        text = describe_findings(fresh, lost)
        _log.warning("%s Trace lint: %s. Logged once; `agl show` has it for each attempt.", prefix, text)


def describe_findings(codes: Sequence[str], lost: Sequence[str]) -> str:
    """The findings as text; ``lost`` are the names of placeholders."""
    parts = [FINDINGS[code] for code in codes]
    if "lost_placeholder" in codes and lost:
        parts[codes.index("lost_placeholder")] += f" ({', '.join(sorted(lost))})"
    return "; ".join(parts)
