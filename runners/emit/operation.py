"""operation: a function or a block as a span with its inputs and its output."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

from ...core.errors import InvalidInput
from ...core.model.semconv import AGL_OPERATION, LightningSpanAttributes
from ...core.model.span import Attributes, SpanCoreFields, SpanRecordingContext
from ...core.spans.attributes import flatten_attributes, sanitize_attributes
from ..tracing.active import get_active_tracer
from ..tracing.dummy import DummyTracer

__all__ = ["OperationContext", "operation"]

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
