"""The lint of a trace: what is missing in an attempt whose agent returned, found before anybody trains on it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.model.resources import ProxyLLM
from ...core.model.span import Span
from ...core.spans.model_calls import candidates_of, distinct_calls
from ...core.spans.readers import get_reward_value

__all__ = ["FINDINGS", "check_trace", "say_findings", "sentence"]

FINDINGS = {
    "no_model_call": "no model call was recorded",
    "no_reward": "no reward was recorded",
    "no_token_ids": "model calls without token ids were recorded",
    "lost_placeholder": "a prompt has no place for a value that it was given",
}
"""Every finding and its sentence. In the log an attempt carries the codes, in its metadata under ``trace_lint``."""

_log = logging.getLogger(__name__)
_TOKENS = "response_token_ids"


def check_trace(spans: Sequence[Span], resources: Mapping[str, Any], lost: Sequence[str], strict: bool) -> list[str]:
    """Codes of :data:`FINDINGS`, in its order.

    Spans of several instrumentations that are one call count once. Token ids are asked for where they can be
    expected: of every generation when one of them has some, when a resource is a proxied model, which is how agents are
    trained, and always with ``strict``.
    """
    candidates = candidates_of(spans)
    calls = [one.span for one in (candidates[place] for place in distinct_calls(candidates)) if not one.around]
    with_ids = [span for span in calls if span.attributes.get(_TOKENS)]
    expected = strict or bool(with_ids) or any(isinstance(one, ProxyLLM) for one in resources.values())
    found = {
        "no_model_call": not calls,
        "no_reward": all(get_reward_value(span) is None for span in spans),
        "no_token_ids": expected and len(with_ids) < len(calls),
        "lost_placeholder": bool(lost),
    }
    return [code for code in FINDINGS if found[code]]


def say_findings(codes: Sequence[str], lost: Sequence[str], said: set[str], prefix: str) -> None:
    """One warning for each kind of finding of a runner, not one for each attempt; ``said`` remembers."""
    fresh = [code for code in codes if code not in said]
    said.update(fresh)
    if fresh:
        _log.warning("%s Trace lint: %s. Said once; `agl show` says it of each attempt.", prefix, sentence(fresh, lost))


def sentence(codes: Sequence[str], lost: Sequence[str]) -> str:
    """The findings for people; ``lost`` are the names of placeholders."""
    parts = [FINDINGS[code] for code in codes]
    if "lost_placeholder" in codes and lost:
        parts[codes.index("lost_placeholder")] += f" ({', '.join(sorted(lost))})"
    return "; ".join(parts)
