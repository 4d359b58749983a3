"""Rewards: what counts as one, and where the attributes of a span hold them, in every version that wrote spans."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from ..errors import InvalidInput
from ..model.scalars import number
from ..model.semconv import AGL_ANNOTATION, AGL_REWARD, LightningSpanAttributes, RewardAttributes

__all__ = ["check_reward_attributes", "dimensions_of", "is_current", "primary_reward", "reward_number"]

_PREFIX = LightningSpanAttributes.REWARD.value + "."
_NAME, _VALUE = RewardAttributes.REWARD_NAME.value, RewardAttributes.REWARD_VALUE.value
_AGENTOPS_OUTPUTS = ("agentops.task.output", "agentops.entity.output")


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
        output = _mapping(attributes.get(key))
        if output is not None and output.get("type") == "reward":
            return key, output.get("value")
    if name in (AGL_REWARD, AGL_ANNOTATION) and "reward" in attributes:
        return "reward", attributes["reward"]
    return None


def is_current(key: str) -> bool:
    """Whether the releases of today write rewards into this attribute."""
    return key.startswith(_PREFIX)


def check_reward_attributes(name: str, attributes: Mapping[str, Any], what: str = "The reward") -> None:
    """`InvalidInput` where a span called `name` carries a reward that is no finite number, which `what` names."""
    values = [value for _, value in dimensions_of(attributes).values() if value is not None]
    older = _older(name, attributes)
    # What the first releases wrote may be a text in an annotation of the user's: no number, and no reward.
    if older is not None and number(older[1]) is not None:
        values.append(older[1])
    for value in values:
        try:
            reward_number(value, what)
        except TypeError as error:
            raise InvalidInput(str(error)) from None


def _mapping(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        if '"reward"' not in value:
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None
