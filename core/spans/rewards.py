"""Rewards: what counts as one, where spans hold them in every version that wrote spans, and the final one of a rollout."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, cast

from ..errors import InvalidInput
from ..model.scalars import number
from ..model.semconv import AGL_ANNOTATION, AGL_REWARD, LightningSpanAttributes, RewardAttributes, RewardPydanticModel

__all__ = [
    "attempt_spans",
    "attributes_of",
    "checked_reward",
    "dimensions_of",
    "final_reward",
    "find_final_reward",
    "find_reward_spans",
    "get_reward_value",
    "get_rewards_from_span",
    "is_current",
    "is_reward_span",
    "primary_reward",
    "reward_number",
]

S = TypeVar("S")

_log = logging.getLogger(__name__)

_PREFIX = LightningSpanAttributes.REWARD.value + "."
_NAME, _VALUE = RewardAttributes.REWARD_NAME.value, RewardAttributes.REWARD_VALUE.value
_AGENTOPS_OUTPUTS = ("agentops.task.output", "agentops.entity.output")


def attributes_of(span: Any) -> Mapping[str, Any]:
    """The attributes of a span; empty where it has none."""
    return cast("Mapping[str, Any]", span.attributes or {})


def reward_number(value: Any, what: str = "The reward") -> float:
    """A reward as a float. TypeError for what is no number, `InvalidInput` for NaN and infinities.

    One such value would make every mean that it enters meaningless, so it is refused where it is made.
    """
    found = number(value)
    if found is None:
        raise TypeError(f"{what} must be a number, not {type(value).__name__}")
    if not math.isfinite(found):
        raise InvalidInput(
            f"{what} is {found}; a reward is a finite number. Emit none, or return None, where there is no reward"
        )
    return found


def dimensions_of(attributes: Mapping[str, Any]) -> dict[int, tuple[str, Any]]:
    """Index -> name and value of the dimensions of a reward span, as they are stored, in the order of the index.

    A dimension without a name is called `primary`; one without a value has None.
    """
    found: dict[int, dict[str, Any]] = {}
    for key, value in attributes.items():
        if key.startswith(_PREFIX):
            index, _, field = key[len(_PREFIX) :].partition(".")
            # More digits than this are no index, and int() refuses thousands of them.
            if index.isascii() and index.isdigit() and len(index) < 10:
                found.setdefault(int(index), {})[field] = value
    return {index: (str(one.get(_NAME, "primary")), one.get(_VALUE)) for index, one in sorted(found.items())}


def primary_reward(name: str, attributes: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The attribute that holds the primary reward of a span called `name`, and its value as stored; None without one.

    A span with dimensions none of which is the primary one has none: another dimension never stands in for it.
    """
    dimensions = dimensions_of(attributes)
    if dimensions:
        return (f"{_PREFIX}0.{_VALUE}", dimensions[0][1]) if 0 in dimensions else None
    return _older(name, attributes)


def _older(name: str, attributes: Mapping[str, Any]) -> tuple[str, Any] | None:
    for key in _AGENTOPS_OUTPUTS:
        output = _mapping(attributes[key]) if key in attributes else None
        if output is not None and output.get("type") == "reward":
            return key, output.get("value")
    if name in (AGL_REWARD, AGL_ANNOTATION) and "reward" in attributes:
        return "reward", attributes["reward"]
    return None


def is_current(key: str) -> bool:
    """Whether the releases of today write rewards into this attribute."""
    return key.startswith(_PREFIX)


def checked_reward(name: str, attributes: Mapping[str, Any], what: str = "The reward") -> float | None:
    """The primary reward of a span called `name`, as `get_reward_value` finds it.

    `InvalidInput` where the span carries a reward that is no finite number, which `what` names.
    """
    dimensions = dimensions_of(attributes)
    older = _older(name, attributes)
    if not dimensions and older is None:
        return None
    values = [value for _, value in dimensions.values() if value is not None]
    # What the first releases wrote may be a text in an annotation of the user's: no number, and no reward.
    if older is not None and number(older[1]) is not None:
        values.append(older[1])
    for value in values:
        try:
            reward_number(value, what)
        except TypeError as error:
            raise InvalidInput(str(error)) from None
    return _value_of(primary_reward(name, attributes))


def _mapping(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        if '"reward"' not in value:
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def get_rewards_from_span(span: Any) -> list[RewardPydanticModel]:
    """All dimensions of a reward span, the primary first; empty for other spans.

    A dimension without a name is called ``primary``; one without a finite number is left out.
    """
    found = ((name, _finite(value)) for name, value in dimensions_of(attributes_of(span)).values())
    return [RewardPydanticModel(name=name, value=value) for name, value in found if value is not None]


def get_reward_value(span: Any) -> float | None:
    """The primary reward of a span of any version; None when it has none.

    A span with dimensions whose primary one is no finite number has none: another dimension never
    stands in for it.
    """
    return _value_of(primary_reward(span.name, attributes_of(span)))


def _value_of(found: tuple[str, Any] | None) -> float | None:
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
