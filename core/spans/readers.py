"""Readers: the rewards, messages and objects in spans, also in those that older versions wrote."""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, cast

from ..model.scalars import number
from ..model.semconv import AGL_MESSAGE, AGL_OBJECT, LightningSpanAttributes, RewardPydanticModel
from ..model.span import SpanAttributeNames
from .rewards import dimensions_of, is_current, primary_reward

__all__ = [
    "attempt_spans",
    "final_reward",
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
# Before release 0.3 these were the whole names.
_OLD_MESSAGE, _OLD_OBJECT = SpanAttributeNames.MESSAGE.value, SpanAttributeNames.OBJECT.value


def _attributes(span: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", span.attributes or {})


def get_rewards_from_span(span: Any) -> list[RewardPydanticModel]:
    """All dimensions of a reward span, the primary first; empty for other spans.

    A dimension without a name is called ``primary``; one without a finite number is left out.
    """
    found = ((name, _finite(value)) for name, value in dimensions_of(_attributes(span)).values())
    return [RewardPydanticModel(name=name, value=value) for name, value in found if value is not None]


def get_reward_value(span: Any) -> float | None:
    """The primary reward of a span of any version; None when it has none.

    A span with dimensions whose primary one is no finite number has none: another dimension never
    stands in for it.
    """
    found = primary_reward(span.name, _attributes(span))
    if found is None:
        return None
    if not is_current(found[0]):
        _say_deprecated(found[0])
    return _finite(found[1])


@cache
def _say_deprecated(key: str) -> None:
    """Once in a process: an old trace has such spans by the hundred."""
    _log.warning("Reading a reward from the attribute %r is deprecated; use emit_reward.", key)


def _finite(value: Any) -> float | None:
    """The number; None for what is none, and for NaN and infinities, which older releases stored."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


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


def attempt_spans(spans: Iterable[S], attempt_id: str | None) -> list[S]:
    """The spans of one attempt in the order of their sequence ids; ``spans`` may be of several, in any order."""
    own = [span for span in cast("Iterable[Any]", spans) if span.attempt_id == attempt_id]
    own.sort(key=lambda span: span.sequence_id)
    return own


def final_reward(spans: Iterable[Any], attempt_id: str | None) -> float | None:
    """The final reward of a rollout: the last reward of the attempt that counts, which is the latest one.

    ``spans`` may be of several attempts, in any order; ``attempt_id`` None is a rollout that was never claimed.
    """
    return find_final_reward(attempt_spans(spans, attempt_id))


def get_message_value(span: Any) -> str | None:
    """The text of a message span of any version; None for other spans, TypeError when it is no text."""
    attributes = _attributes(span)
    value = attributes.get(LightningSpanAttributes.MESSAGE_BODY.value)
    if value is None and span.name == AGL_MESSAGE:
        value = attributes.get(_OLD_MESSAGE)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"A message must be a string, not {type(value).__name__}")
    return value


def get_object_value(span: Any) -> Any:
    """The value of an object span of any version; None for other spans.

    RuntimeError when the value cannot be read back.
    """
    attributes = _attributes(span)
    text = attributes.get(LightningSpanAttributes.OBJECT_JSON.value)
    if text is None and span.name == AGL_OBJECT:
        text = attributes.get(_OLD_OBJECT)
    if text is not None:
        return _read("JSON", json.loads, text)
    literal = attributes.get(LightningSpanAttributes.OBJECT_LITERAL.value)
    if literal is None:
        return None
    kind = attributes.get(LightningSpanAttributes.OBJECT_TYPE.value)
    if kind == "str":
        return literal
    if kind == "bool":
        return literal == "True"
    read: Callable[[Any], Any] | None = {"int": int, "float": float, "bytes": base64.b64decode}.get(str(kind))
    if read is None:
        raise RuntimeError(f"Unknown type of object: {kind!r}")
    return _read(str(kind), read, literal)


def _read(kind: str, read: Callable[[Any], Any], text: Any) -> Any:
    try:
        return read(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise RuntimeError(f"The object cannot be read as {kind}: {error}") from error
