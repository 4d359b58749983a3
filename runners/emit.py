"""Emitters: spans that an agent makes about its own run: rewards, messages, objects, exceptions, operations."""

from __future__ import annotations

import base64
import functools
import inspect
import json
import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar, cast

from ..core.errors import InvalidInput
from ..core.model.scalars import number, plain_data, plain_scalar
from ..core.model.semconv import (
    AGL_ANNOTATION,
    AGL_EXCEPTION,
    AGL_MESSAGE,
    AGL_OBJECT,
    AGL_OPERATION,
    AGL_REWARD,
    LightningSpanAttributes,
    RewardAttributes,
)
from ..core.model.span import Attributes, SpanCoreFields, SpanRecordingContext, TraceStatus
from ..core.spans.attributes import (
    flatten_attributes,
    format_exception_attributes,
    full_qualified_name,
    sanitize_attribute_value,
    sanitize_attributes,
)
from ..core.spans.rewards import checked_reward, reward_number
from .tracing.base import DummyTracer, Tracer, get_active_tracer
from .tracing.span_buffer import CURRENT_BUFFER

__all__ = [
    "OperationContext",
    "emit_annotation",
    "emit_exception",
    "emit_message",
    "emit_object",
    "emit_reward",
    "operation",
    "reward",
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
    checked_reward(AGL_ANNOTATION, fields, _the_reward())
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
    recording = CURRENT_BUFFER.get()
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


# Below this a value is written as one text: one that holds itself would have no end.
_DEEPEST = 32
_NAME = LightningSpanAttributes.OPERATION_NAME.value
_INPUT = LightningSpanAttributes.OPERATION_INPUT.value
_OUTPUT = LightningSpanAttributes.OPERATION_OUTPUT.value


class OperationContext:
    """``with operation(...) as op``: a span around the block."""

    def __init__(self, attributes: Attributes, propagate: bool) -> None:
        self._attributes = attributes
        self._propagate = propagate
        self._context: AbstractContextManager[SpanRecordingContext] | None = None
        self._recording: SpanRecordingContext | None = None
        self._span: SpanCoreFields | None = None

    def __enter__(self) -> OperationContext:
        self._context = _open(self._attributes, self._propagate)
        self._recording = self._context.__enter__()
        return self

    def __exit__(self, *exc: Any) -> bool | None:
        context, recording = self._context, self._recording
        self._context = self._recording = None
        if context is None or recording is None:
            raise RuntimeError("The operation was not entered.")
        try:
            return context.__exit__(*exc)
        finally:
            self._span = recording.get_recorded_span()

    def set_input(self, *args: Any, **kwargs: Any) -> None:
        """Record inputs: positional ones by number, others by name. RuntimeError outside of the block."""
        self._record(_input_of({"args": list(args)} if args else {}) | _input_of(kwargs))

    def set_output(self, output: Any) -> None:
        """Record the output. RuntimeError outside of the block."""
        self._record(_output_of(output))

    def span(self) -> SpanCoreFields:
        """The span; RuntimeError before the block has ended."""
        if self._span is None:
            raise RuntimeError("Span is not ready yet.")
        return self._span

    def _record(self, attributes: Attributes) -> None:
        if self._recording is None:
            raise RuntimeError("Inputs and outputs are set inside of the operation.")
        self._recording.record_attributes(attributes)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Used as a decorator with arguments: wraps ``function``."""
        return _decorated(function, self._attributes, self._propagate)


def operation(
    fn: Callable[..., Any] | None = None, *, propagate: bool = True, name: str | None = None, **attrs: Any
) -> Any:
    """Decorator (``@operation``, ``@operation(k=v)``) or block (``with operation(k=v) as op``).

    A decorated function records its arguments, its result and its exception. The tracer is that
    of the moment of the call: decorating needs none, calling raises RuntimeError without one
    unless ``propagate`` is False. ValueError for a positional argument that is no function.
    """
    fields = dict(attrs)
    if name is not None:
        if _NAME in fields:
            raise InvalidInput(f"The name is given twice: name= and {_NAME}")
        fields[_NAME] = name
    attributes = sanitize_attributes(flatten_attributes(fields))
    if fn is None:
        return OperationContext(attributes, propagate)
    if not callable(fn):
        raise InvalidInput("operation() takes a function, or keyword arguments only")
    return _decorated(fn, attributes, propagate)


def _open(attributes: Attributes, propagate: bool) -> AbstractContextManager[SpanRecordingContext]:
    tracer = get_active_tracer() if propagate else DummyTracer()
    if tracer is None:
        raise RuntimeError("No active tracer found. Cannot record an operation.")
    return tracer.operation_context(AGL_OPERATION, attributes)


def _decorated(function: Callable[..., Any], attributes: Attributes, propagate: bool) -> Callable[..., Any]:
    fields: Attributes = {_NAME: getattr(function, "__name__", type(function).__name__), **attributes}

    @contextmanager
    def recorded(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[SpanRecordingContext, None, None]:
        with _open({**fields, **_bound(function, args, kwargs)}, propagate) as recording:
            yield recording

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            with recorded(args, kwargs) as recording:
                result = await function(*args, **kwargs)
                recording.record_attributes(_output_of(result))
                return result

        return awaited

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with recorded(args, kwargs) as recording:
            result = function(*args, **kwargs)
            recording.record_attributes(_output_of(result))
            return result

    return called


def _bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attributes:
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return _input_of({"args": list(args), "kwargs": kwargs})
    bound.apply_defaults()
    return _input_of(bound.arguments)


def _input_of(values: Mapping[str, Any]) -> Attributes:
    return _below(_INPUT, values)


def _output_of(value: Any) -> Attributes:
    return _below(_OUTPUT, value)


def _below(prefix: str, value: Any) -> Attributes:
    flat: Attributes = {}
    _walk(prefix, value, flat, _DEEPEST)
    return flat


def _walk(prefix: str, value: Any, flat: Attributes, levels: int) -> None:
    if isinstance(value, Mapping) and levels:
        for key, item in cast("Mapping[Any, Any]", value).items():
            _walk(f"{prefix}.{key}", item, flat, levels - 1)
    elif isinstance(value, (list, tuple)) and levels:
        for index, item in enumerate(cast("list[Any]", value)):
            _walk(f"{prefix}.{index}", item, flat, levels - 1)
    else:
        flat.update(sanitize_attributes({prefix: value}))


F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger(__name__)


def reward(fn: F) -> F:
    """Deprecated: record what ``fn`` (sync or async) returns as a reward; call ``emit_reward`` instead.

    The call is an operation named ``agentlightning.reward``, so that model calls made inside of it
    are a judge's and become no triplets; the reward itself follows as a span of its own. A result
    that is no number is passed on and records no reward, with a warning; so is any result where
    no trace is open. NaN and infinities are refused as :func:`emit_reward` refuses them.
    """
    warnings.warn("agl.reward is deprecated; call agl.emit_reward.", DeprecationWarning, stacklevel=2)
    recorded = operation(fn, name=AGL_REWARD)

    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return _record(fn, await (recorded if get_active_tracer() else fn)(*args, **kwargs))

        return cast(F, awaited)

    @functools.wraps(fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        return _record(fn, (recorded if get_active_tracer() else fn)(*args, **kwargs))

    return cast(F, called)


def _record(fn: Callable[..., Any], result: Any) -> Any:
    name = getattr(fn, "__name__", type(fn).__name__)
    if number(result) is None:
        _log.warning("%s returned %s, which is no reward; none is recorded.", name, type(result).__name__)
    elif get_active_tracer() is None:
        _log.warning("%s was called outside of a trace; its reward is not recorded.", name)
    else:
        emit_reward(cast(float, result))
    return result
