"""Emitters: what an agent says about its own run, as spans: rewards, messages, objects, exceptions."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, cast

from ...core.errors import InvalidInput
from ...core.model.scalars import number, plain_data, plain_scalar
from ...core.model.semconv import (
    AGL_ANNOTATION,
    AGL_EXCEPTION,
    AGL_MESSAGE,
    AGL_OBJECT,
    LightningSpanAttributes,
    RewardAttributes,
)
from ...core.model.span import Attributes, SpanCoreFields, TraceStatus
from ...core.spans.attributes import (
    flatten_attributes,
    format_exception_attributes,
    full_qualified_name,
    sanitize_attribute_value,
    sanitize_attributes,
)
from ...core.spans.rewards import check_reward_attributes, reward_number
from ..tracing.active import get_active_tracer
from ..tracing.base import Tracer
from ..tracing.dummy import DummyTracer
from ..tracing.span_buffer import CURRENT

__all__ = [
    "emit_annotation",
    "emit_exception",
    "emit_message",
    "emit_object",
    "emit_reward",
    "reward_attributes",
]


def _tracer(propagate: bool, what: str) -> Tracer:
    if not propagate:
        return DummyTracer()
    tracer = get_active_tracer()
    if tracer is None:
        raise RuntimeError(f"No active tracer found. Cannot emit {what} span.")
    return tracer


def _flat(attributes: Mapping[str, Any] | None) -> Attributes:
    return sanitize_attributes(flatten_attributes(attributes or {}))


def emit_message(message: str, attributes: Mapping[str, Any] | None = None, propagate: bool = True) -> None:
    """Record a text. TypeError for anything but a string.

    In all emitters ``attributes`` may be nested, and RuntimeError means that no trace is open;
    with ``propagate`` False the span goes nowhere and needs none.
    """
    if not isinstance(message, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"A message must be a string, not {type(message).__name__}")
    tracer = _tracer(propagate, "message")
    fields = {**_flat(attributes), LightningSpanAttributes.MESSAGE_BODY.value: str(plain_scalar(message))}
    tracer.create_span(AGL_MESSAGE, fields, status=TraceStatus(status_code="UNSET"))


def _literal(value: Any) -> tuple[str, str] | None:
    """Type and text of a primitive; None for other values.

    A subclass (an IntEnum) or a scalar of numpy is written as the primitive that it stands for, since
    only primitives can be read back.
    """
    value = plain_scalar(value)
    if isinstance(value, bytes):
        return "bytes", base64.b64encode(value).decode("ascii")
    if isinstance(value, bool):
        return "bool", str(value)
    if isinstance(value, (int, float)):
        return type(value).__name__, repr(value)
    return ("str", value) if isinstance(value, str) else None


def emit_object(
    object: Any,
    attributes: Mapping[str, Any] | None = None,
    propagate: bool = True,
) -> SpanCoreFields:
    """Record a value: primitives and bytes literally, the rest as JSON. RuntimeError when it has none."""
    tracer = _tracer(propagate, "object")
    fields = _flat(attributes)
    try:
        literal = _literal(object)
    except ValueError as error:
        raise RuntimeError(f"The object cannot be written as text: {error}") from error
    if literal is not None:
        fields[LightningSpanAttributes.OBJECT_TYPE.value] = literal[0]
        fields[LightningSpanAttributes.OBJECT_LITERAL.value] = literal[1]
        return tracer.create_span(AGL_OBJECT, fields)
    try:
        fields[LightningSpanAttributes.OBJECT_JSON.value] = json.dumps(object, default=plain_data)
    except (TypeError, ValueError, RecursionError) as error:
        raise RuntimeError(f"The object cannot be written as JSON: {error}") from error
    fields[LightningSpanAttributes.OBJECT_TYPE.value] = full_qualified_name(cast("type[Any]", type(object)))
    return tracer.create_span(AGL_OBJECT, fields)


def emit_exception(
    exception: BaseException, attributes: Mapping[str, Any] | None = None, propagate: bool = True
) -> None:
    """Record an exception with its traceback. TypeError for anything else."""
    if not isinstance(exception, BaseException):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"An exception is needed, not {type(exception).__name__}")
    tracer = _tracer(propagate, "exception")
    tracer.create_span(AGL_EXCEPTION, {**_flat(attributes), **format_exception_attributes(exception)})


def emit_annotation(annotation: Mapping[str, Any], propagate: bool = True) -> SpanCoreFields:
    """Record key-value pairs, nested or not.

    ValueError for values that no span can hold, None too, and for a reward that is no finite number.
    """
    if not isinstance(annotation, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"An annotation is a mapping, not {type(annotation).__name__}")
    fields: Attributes = {}
    for key, value in flatten_attributes(annotation).items():
        try:
            fields[key] = sanitize_attribute_value(value, force=False)
        except ValueError as error:
            raise InvalidInput(f"Annotation {key!r}: {error}") from None
    check_reward_attributes(AGL_ANNOTATION, fields, _the_reward())
    return _tracer(propagate, "annotation").create_span(AGL_ANNOTATION, fields)


def emit_reward(
    reward: float | Mapping[str, float],
    *,
    primary_key: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    propagate: bool = True,
) -> SpanCoreFields:
    """Record a reward, or several dimensions of one; ``primary_key`` names the one that counts.

    A number is any real one: int, bool, float, Decimal, Fraction, and numpy's. TypeError for a scalar
    that is none, a text too; ValueError for NaN and infinities, for a dict without ``primary_key``,
    and for one with a value that is no number.
    """
    return emit_annotation({**reward_attributes(reward, primary_key), **(attributes or {})}, propagate)


def reward_attributes(reward: Any, primary_key: str | None = None) -> Attributes:
    """The attributes of a reward span: ``agentlightning.reward.<i>.name`` and ``.value``, primary first."""
    what = _the_reward()
    if isinstance(reward, Mapping):
        dimensions = _dimensions(cast(Mapping[str, Any], reward), primary_key, what)
    elif number(reward) is None:
        raise TypeError(f"{what} must be a number or a mapping of numbers, not {type(reward).__name__}")
    else:
        dimensions = {"primary": reward_number(reward, what)}
    fields: Attributes = {}
    for index, (name, value) in enumerate(dimensions.items()):
        prefix = f"{LightningSpanAttributes.REWARD.value}.{index}"
        fields[f"{prefix}.{RewardAttributes.REWARD_NAME.value}"] = name
        fields[f"{prefix}.{RewardAttributes.REWARD_VALUE.value}"] = value
    return fields


def _the_reward() -> str:
    """How errors name a reward: with the rollout whose attempt runs in this context."""
    recording = CURRENT.get()
    return "The reward" if recording is None else f"The reward of rollout {recording.rollout_id}"


def _dimensions(reward: Mapping[str, Any], primary_key: str | None, what: str) -> dict[str, float]:
    if primary_key is None:
        raise InvalidInput("primary_key is required for a reward of several dimensions")
    if primary_key not in reward:
        raise InvalidInput(f"primary_key {primary_key!r} is no dimension of the reward: {list(reward)}")
    for key, value in reward.items():
        if number(value) is None:
            raise InvalidInput(f"Reward value must be a number, got: {value!r} for key {key}")
    ordered = {primary_key: reward[primary_key], **reward}
    return {key: reward_number(value, f"{what} for key {key}") for key, value in ordered.items()}
