"""Readers: the rewards, messages and objects in spans, also in those that older versions wrote."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from ..core.semconv import (
    AGL_ANNOTATION,
    AGL_REWARD,
    LightningSpanAttributes,
    RewardAttributes,
    RewardPydanticModel,
)

__all__ = [
    "find_final_reward",
    "find_reward_spans",
    "get_message_value",
    "get_object_value",
    "get_reward_value",
    "get_rewards_from_span",
    "is_reward_span",
]

S = TypeVar("S")

_log = logging.getLogger(__name__)
_PREFIX = LightningSpanAttributes.REWARD.value + "."
_AGENTOPS_OUTPUTS = ("agentops.task.output", "agentops.entity.output")


def _attributes(span: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", span.attributes or {})


def get_rewards_from_span(span: Any) -> list[RewardPydanticModel]:
    """All dimensions of a reward span, the primary first; empty for other spans.

    A dimension without a name is called ``primary``; one without a number is left out.
    """
    found: dict[int, dict[str, Any]] = {}
    for key, value in _attributes(span).items():
        if key.startswith(_PREFIX):
            index, _, field = key[len(_PREFIX) :].partition(".")
            if index.isdigit():
                found.setdefault(int(index), {})[field] = value
    rewards: list[RewardPydanticModel] = []
    for _, fields in sorted(found.items()):
        value = _number(fields.get(RewardAttributes.REWARD_VALUE.value))
        if value is not None:
            name = str(fields.get(RewardAttributes.REWARD_NAME.value, "primary"))
            rewards.append(RewardPydanticModel(name=name, value=value))
    return rewards


def get_reward_value(span: Any) -> float | None:
    """The primary reward of a span of any version; None when it has none."""
    rewards = get_rewards_from_span(span)
    if rewards:
        return rewards[0].value
    attributes = _attributes(span)
    for key in _AGENTOPS_OUTPUTS:
        output = _mapping(attributes.get(key))
        if output is not None and output.get("type") == "reward":
            _log.warning("Reading a reward from %s is deprecated; use emit_reward.", key)
            return _number(output.get("value"))
    if span.name in (AGL_REWARD, AGL_ANNOTATION) and "reward" in attributes:
        return _number(attributes["reward"])
    return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _mapping(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def is_reward_span(span: Any) -> bool:
    """Whether the span carries a reward."""
    return get_reward_value(span) is not None


def find_reward_spans(spans: Sequence[S]) -> list[S]:
    """The spans that carry a reward, in the order given."""
    return [span for span in spans if is_reward_span(span)]


def find_final_reward(spans: Sequence[Any]) -> float | None:
    """The last reward in the order given; None without any.

    ``query_spans`` orders by sequence id over all attempts: ask for ``attempt_id="latest"`` when
    a rollout may have several.
    """
    for span in reversed(spans):
        value = get_reward_value(span)
        if value is not None:
            return value
    return None


def get_message_value(span: Any) -> str | None:
    """The text of a message span; None for other spans, TypeError when it is no text."""
    value = _attributes(span).get(LightningSpanAttributes.MESSAGE_BODY.value)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"A message must be a string, not {type(value).__name__}")
    return value


def get_object_value(span: Any) -> Any:
    """The value of an object span; None for other spans. RuntimeError when it cannot be read back."""
    attributes = _attributes(span)
    text = attributes.get(LightningSpanAttributes.OBJECT_JSON.value)
    if text is not None:
        try:
            return json.loads(text)
        except (TypeError, ValueError) as error:
            raise RuntimeError(f"The object's JSON cannot be read: {error}") from error
    literal = attributes.get(LightningSpanAttributes.OBJECT_LITERAL.value)
    if literal is None:
        return None
    kind = attributes.get(LightningSpanAttributes.OBJECT_TYPE.value)
    if kind == "str":
        return literal
    if kind == "bool":
        return literal == "True"
    try:
        if kind == "int":
            return int(literal)
        if kind == "float":
            return float(literal)
        if kind == "bytes":
            return base64.b64decode(literal)
    except ValueError as error:
        raise RuntimeError(f"The object is no {kind}: {error}") from error
    raise RuntimeError(f"Unknown type of object: {kind!r}")
