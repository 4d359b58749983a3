"""Triplets from the spans of a model proxy, whose order is the store's and whose clocks are not trusted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ...core.model.rollout import Triplet
from ...core.model.span import Span
from . import span_fields
from .base import as_spans
from .span_tree import finite
from .triplets import TraceToTripletBase

__all__ = ["LlmProxyTraceToTriplet"]

_RAW, _LITELLM = "raw_gen_ai_request", "litellm_request"
_FIELD = re.compile(r"llm\.([^.]+)\.(prompt_token_ids|response_token_ids|choices|id)")


@dataclass
class _Call:
    span: Span
    prompt: list[int]
    response: list[int]
    response_id: str | None
    rewards: list[float]


class LlmProxyTraceToTriplet(TraceToTripletBase):
    """One triplet for each proxied call that carries the token ids of prompt and response.

    ``prompt`` and ``response`` are ``{"token_ids": [...]}``, ``metadata`` is ``{"response_id": ...}``.
    A reward belongs to the latest call with a smaller sequence id that has none; the final
    reward of the trace takes the place of the latest call's where all have one.
    """

    def adapt(self, source: Sequence[Any], /) -> list[Triplet]:
        """The triplets in the order of sequence ids; none for no spans."""
        odd: Counter[str] = Counter()
        spans = sorted(as_spans(source, odd), key=lambda span: (span.sequence_id, finite(span.start_time) or 0.0))
        calls = _calls(spans, odd)
        _reward(calls, spans, odd)
        self.report(odd)
        return [
            Triplet(
                prompt={"token_ids": call.prompt},
                response={"token_ids": call.response},
                reward=call.rewards[-1] if call.rewards else None,
                metadata={"response_id": call.response_id}
                | ({"intermediate_rewards": call.rewards[:-1]} if len(call.rewards) > 1 else {}),
            )
            for call in calls
        ]


def _calls(spans: Sequence[Span], odd: Counter[str]) -> list[_Call]:
    calls: list[_Call] = []
    seen: dict[str, _Call] = {}
    for span in spans:
        if span.name not in (_RAW, _LITELLM):
            continue
        provider = _provider_fields(span) if span.name == _RAW else {}
        prompt, response = _prompt(span, provider, odd), _response(span, provider, odd)
        if not prompt or not response:
            # The outer of two spans of one call never has them; it is not odd.
            if span.name == _RAW:
                odd["proxied call without token ids"] += 1
            continue
        answer = span_fields.response_id(span) or provider.get("id")
        answer = answer if isinstance(answer, str) else None
        call = _Call(span, prompt, response, answer, [])
        known = seen.get(answer) if answer is not None else next((one for one in calls if _holds(one, call)), None)
        if known is not None and (known.prompt, known.response) == (prompt, response):
            continue
        if known is not None and answer is not None:
            odd["answer id that two different model calls share"] += 1
        if answer is not None:
            seen.setdefault(answer, call)
        calls.append(call)
    return calls


def _holds(one: _Call, other: _Call) -> bool:
    """Whether the span of one is the parent of the other's: the proxy's own and that of the request that it sent."""
    return one.span.span_id == other.span.parent_id or other.span.span_id == one.span.parent_id


def _provider_fields(span: Span) -> dict[str, Any]:
    """What stands below ``llm.<provider>``; of several providers the first with token ids."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in span.attributes.items():
        match = _FIELD.fullmatch(key)
        if match:
            found.setdefault(match[1], {})[match[2]] = value
    ranked = sorted(found.values(), key=lambda fields: "prompt_token_ids" not in fields)
    return ranked[0] if ranked else {}


def _prompt(span: Span, provider: dict[str, Any], odd: Counter[str]) -> list[int]:
    if span.name == _LITELLM:
        return span_fields.prompt_token_ids(span, odd)
    return _ids(provider.get("prompt_token_ids"), lambda value: value, odd)


def _response(span: Span, provider: dict[str, Any], odd: Counter[str]) -> list[int]:
    if span.name == _LITELLM:
        return span_fields.response_token_ids(span, odd)
    if "response_token_ids" in provider:
        return _ids(provider["response_token_ids"], _first, odd)
    return _ids(provider.get("choices"), _first_choice, odd)


def _ids(value: Any, pick: Callable[[Any], Any], odd: Counter[str]) -> list[int]:
    if value is None:
        return []
    picked = pick(span_fields.spelled(value) if isinstance(value, str) else value)
    ids = span_fields.id_list(picked)
    if ids is None:
        if picked is not None:
            odd["token ids that are no list of integers"] += 1
        return []
    return ids


def _first(value: Any) -> Any:
    """The first inner list; a flat list is one already."""
    items = span_fields.sequence(value)
    return cast("Any", items[0]) if items and isinstance(items[0], (list, tuple)) else value


def _first_choice(value: Any) -> Any:
    items = span_fields.sequence(value)
    return cast("dict[str, Any]", items[0]).get("token_ids") if items and isinstance(items[0], dict) else None


def _reward(calls: Sequence[_Call], spans: Sequence[Span], odd: Counter[str]) -> None:
    rewards = [(span.sequence_id, span_fields.reward_of(span, odd)) for span in spans]
    given = [(number, value) for number, value in rewards if value is not None]
    waiting: list[_Call] = []
    pending = iter(calls)
    upcoming = next(pending, None)
    for place, (number, value) in enumerate(given):
        while upcoming is not None and upcoming.span.sequence_id < number:
            waiting.append(upcoming)
            upcoming = next(pending, None)
        if waiting:
            waiting.pop().rewards.append(value)
            continue
        before = [call for call in calls if call.span.sequence_id < number] if place == len(given) - 1 else []
        if before:
            before[-1].rewards.append(value)
        else:
            odd["reward without a model call of its own"] += 1
