"""What one span says about a model call: its messages, token ids, images, answer id, agent and reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from ...core.model.scalars import number
from ...core.model.semconv import AGL_OPERATION, AGL_REWARD, LightningSpanAttributes
from ...core.model.span import Span
from ...core.spans.conventions import completion_of, nested, parsed, prompt_of, spelled
from ...core.spans.conventions import listed as sequence
from ...core.spans.conventions import response_id_of as response_id
from ...core.spans.rewards import get_reward_value, primary_reward

__all__ = [
    "agent_name",
    "completion_of",
    "given",
    "id_list",
    "image_urls",
    "is_reward",
    "logprobs_of",
    "looks_like_model_call",
    "nested",
    "parsed",
    "prompt_of",
    "prompt_token_ids",
    "response_id",
    "response_token_ids",
    "reward_of",
    "sequence",
    "spelled",
]

_NAME = LightningSpanAttributes.OPERATION_NAME.value
_INPUT = LightningSpanAttributes.OPERATION_INPUT.value
_OUTPUT = LightningSpanAttributes.OPERATION_OUTPUT.value
_AGENT_KEYS = ("recipient_agent_type", "langchain.chain.type", "executor.id", "gen_ai.agent.name")


def given(attributes: Mapping[str, Any], key: str) -> Any:
    """What an attribute holds, or what is stored below it; None without any."""
    value = attributes.get(key)
    return value if value is not None else nested(attributes, key) or None


def image_urls(prompt: Any) -> list[str]:
    """The URLs (or data URLs) of the images in the messages, in order."""
    urls: list[str] = []
    for message in sequence(prompt):
        content = cast("dict[str, Any]", message).get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            content = parsed(content) if content.lstrip().startswith("[") else None
        for part in sequence(content):
            if not isinstance(part, dict):
                continue
            fields = cast("dict[str, Any]", part)
            if fields.get("type") not in ("image_url", "input_image"):
                continue
            image = fields.get("image_url")
            url = cast("dict[str, Any]", image).get("url") if isinstance(image, dict) else image
            if isinstance(url, str):
                urls.append(url)
    return urls


def id_list(value: Any) -> list[int] | None:
    """A list of token ids, or a text that spells one; None for anything else."""
    found = spelled(value) if isinstance(value, str) else value
    items = sequence(found) if isinstance(found, (list, tuple, dict)) else None
    if items is None or not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return None
    return items


def prompt_token_ids(span: Span, odd: Counter[str]) -> list[int]:
    """The token ids of the prompt; empty where the span carries none."""
    value = span.attributes.get("prompt_token_ids")
    if value is None:
        value = _output(span, "prompt_token_ids")
    return _ids(value, "prompt_token_ids", odd)


def response_token_ids(span: Span, odd: Counter[str]) -> list[int]:
    """The token ids of the first answer; empty where the span carries none."""
    value: Any = span.attributes.get("response_token_ids")
    if value is None:
        value = _output(span, "response_token_ids")
        inner = sequence(value)
        value = cast("Any", inner[0]) if inner and isinstance(inner[0], (list, dict)) else value
    if value is None:
        choice = _first_choice(span)
        extra = choice.get("provider_specific_fields")
        value = choice.get("token_ids")
        if value is None and isinstance(extra, dict):
            value = cast("dict[str, Any]", extra).get("token_ids")
    return _ids(value, "response_token_ids", odd)


def _ids(value: Any, what: str, odd: Counter[str]) -> list[int]:
    if value is None:
        return []
    ids = id_list(value)
    if ids is None:
        odd[f"{what} that are no list of integers"] += 1
        return []
    return ids


def _output(span: Span, field: str) -> Any:
    whole = span.attributes.get(f"{_OUTPUT}.{field}")
    return whole if whole is not None else nested(span.attributes, f"{_OUTPUT}.{field}") or None


def _first_choice(span: Span) -> dict[str, Any]:
    choices = sequence(nested(span.attributes, f"{_OUTPUT}.choices"))
    return cast("dict[str, Any]", choices[0]) if choices and isinstance(choices[0], dict) else {}


def logprobs_of(span: Span, odd: Counter[str]) -> Any:
    """The log probabilities of the answer's tokens, as the API gives them; None without any."""
    text = span.attributes.get("logprobs.content")
    if text is None:
        found = _first_choice(span).get("logprobs")
        return cast("dict[str, Any]", found).get("content") if isinstance(found, dict) else None
    value = parsed(text) if isinstance(text, str) else text
    if value is None and text != "null":
        odd["logprobs that are no JSON"] += 1
    return value


def agent_name(span: Span) -> str | None:
    """The name of the agent whose work the span is, from the first source that has one; None without."""
    attributes = span.attributes
    candidates: list[Any] = [attributes.get("agent.name")]
    if attributes.get("agentops.span.kind") == "agent":
        candidates.append(attributes.get("operation.name"))
    candidates += [attributes.get(key) for key in _AGENT_KEYS]
    if attributes.get("type") == "agent" or attributes.get(f"{_INPUT}.type") == "agent":
        candidates.append(attributes.get(f"{_INPUT}.name"))
    if span.name.startswith("langchain.Chain."):
        candidates.append(attributes.get("lc_name"))
    return next((name for name in candidates if isinstance(name, str)), None)


def reward_of(span: Span, odd: Counter[str]) -> float | None:
    """The span's reward; None without one. What is no finite number is counted and is no reward to learn from."""
    value = get_reward_value(span)
    stored = primary_reward(span.name, span.attributes) if value is None else None
    if stored is not None and stored[1] is not None:
        found = number(stored[1])
        odd["reward that is no number" if found is None else f"reward of {found}"] += 1
    return value


def is_reward(span: Span) -> bool:
    """Whether the span is a reward or the work of a function that computes one."""
    if span.name == AGL_OPERATION and span.attributes.get(_NAME) == AGL_REWARD:
        return True
    return primary_reward(span.name, span.attributes) is not None


def looks_like_model_call(span: Span) -> bool:
    """Whether the span holds an answer of a model, whatever its name."""
    return bool(completion_of(span))
