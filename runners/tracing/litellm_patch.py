"""Records calls of LiteLLM that do not go through the OpenAI client, which records its own."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import time
from collections.abc import Callable
from types import CellType, ModuleType
from typing import TYPE_CHECKING, Any, cast

from .call_span import CALL, WITHIN, ModelCall
from .openai_body import ChoicesAnswer, request_attributes

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

__all__ = ["LITELLM", "leave_litellm", "record_litellm"]

_log = logging.getLogger(__name__)
LITELLM = "litellm.main"
"""The module that :func:`record_litellm` patches."""
_STREAMS = "litellm.litellm_core_utils.streaming_handler"
_FUNCTIONS = {"completion": False, "acompletion": True}
"""What is recorded, and whether it is a coroutine; the other functions of LiteLLM for chats call these."""


def record_litellm(module: ModuleType, tracer: Tracer) -> None:
    """Replace the functions inside of LiteLLM's decorator, so that names that agents imported earlier are recorded too."""
    for name, asynchronous in _FUNCTIONS.items():
        cell = _decorated(getattr(module, name, None))
        if cell is None:
            _log.warning("Calls of litellm.%s are not recorded: this version of LiteLLM is built in another way.", name)
        elif not hasattr(cell.cell_contents, CALL):
            cell.cell_contents = _recorded(cell.cell_contents, asynchronous, tracer)
    stream = _stream_class()
    if stream is not None and not hasattr(stream.__next__, CALL):
        stream.__next__, stream.__anext__ = _next(stream.__next__), _next_async(stream.__anext__)


def leave_litellm() -> None:
    """Take it back; does nothing where it was not done."""
    module = sys.modules.get(LITELLM)
    if module is None:
        return
    for cell in [_decorated(getattr(module, name, None)) for name in _FUNCTIONS]:
        if cell is not None and hasattr(cell.cell_contents, CALL):
            cell.cell_contents = cell.cell_contents.__wrapped__
    stream = _stream_class()
    if stream is not None and hasattr(stream.__next__, CALL):
        stream.__next__, stream.__anext__ = stream.__next__.__wrapped__, stream.__anext__.__wrapped__


def _stream_class() -> Any:
    return getattr(importlib.import_module(_STREAMS), "CustomStreamWrapper", None)


def _decorated(function: Any) -> CellType | None:
    """Where the decorator keeps the function that it decorates."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return function.__closure__[names.index("original_function")] if "original_function" in names else None


def _recorded(function: Callable[..., Any], asynchronous: bool, tracer: Tracer) -> Callable[..., Any]:
    """``function`` with a span of what it did, unless the OpenAI client made one."""
    names = list(inspect.signature(function).parameters)

    def begin(args: Any, kwargs: Any, began: int) -> ModelCall:
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "litellm"}
        try:
            attributes.update(cast(Any, request_attributes({**dict(zip(names, args)), **kwargs})))
        except Exception as error:
            # The call was made: its answer is not lost because of its arguments.
            _log.debug("The arguments of a model call could not be recorded: %r", error)
        return ModelCall(tracer.start_span("openai.chat", start_time=began, attributes=attributes), ChoicesAnswer())

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if WITHIN.get() is not None or kwargs.get("acompletion"):
            return function(*args, **kwargs)
        made, began = list[str](), time.time_ns()
        token = WITHIN.set(made)
        try:
            answer = function(*args, **kwargs)
        except BaseException as error:
            if not made:
                begin(args, kwargs, began).fail(error)
            raise
        finally:
            WITHIN.reset(token)
        return answer if made else _answered(begin(args, kwargs, began), answer)

    @functools.wraps(function)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        if WITHIN.get() is not None:
            return await function(*args, **kwargs)
        made, began = list[str](), time.time_ns()
        token = WITHIN.set(made)
        try:
            answer = await function(*args, **kwargs)
        except BaseException as error:
            if not made:
                begin(args, kwargs, began).fail(error)
            raise
        finally:
            WITHIN.reset(token)
        return answer if made else _answered(begin(args, kwargs, began), answer)

    replacement = call_async if asynchronous else call
    setattr(replacement, CALL, True)
    return replacement


def _answered(call: ModelCall, answer: Any) -> Any:
    if hasattr(answer, "completion_stream"):
        call.streams()
        setattr(answer, CALL, call)
        return answer
    return call.answered(answer)


def _next(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(method)
    def advance(self: Any) -> Any:
        call: ModelCall | None = getattr(self, CALL, None)
        if call is None:
            return method(self)
        try:
            piece = method(self)
        except StopIteration:
            call.finish()
            raise
        except BaseException as error:
            call.fail(error)
            raise
        call.piece(piece)
        return piece

    setattr(advance, CALL, True)
    return advance


def _next_async(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(method)
    async def advance(self: Any) -> Any:
        call: ModelCall | None = getattr(self, CALL, None)
        if call is None:
            return await method(self)
        try:
            piece = await method(self)
        except StopAsyncIteration:
            call.finish()
            raise
        except BaseException as error:
            call.fail(error)
            raise
        call.piece(piece)
        return piece

    setattr(advance, CALL, True)
    return advance
