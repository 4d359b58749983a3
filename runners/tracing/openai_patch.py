"""Records calls of the OpenAI client as spans, whatever the form of the answer, and removes the patch."""

from __future__ import annotations

import functools
import gc
import importlib
import logging
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from ...core.log.open_log import shown
from ...core.model.span import Attributes
from .call_span import CALL, INSIDE, SCOPE, WITHIN, ModelCall
from .litellm_patch import leave_litellm, record_litellm
from .openai_body import Answer, ChoicesAnswer, ResponseAnswer, request_attributes

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer, TracerProvider

__all__ = ["instrument_all", "uninstrument_all"]

_log = logging.getLogger(__name__)
_LOCK = threading.Lock()
_CALLS: dict[str, tuple[str, str, Callable[[], Answer]]] = {
    "openai.resources.chat.completions": ("openai.chat", "chat", ChoicesAnswer),
    "openai.resources.beta.chat.completions": ("openai.chat", "chat", ChoicesAnswer),
    "openai.resources.completions": ("openai.completion", "text_completion", ChoicesAnswer),
    "openai.resources.embeddings": ("openai.embeddings", "embeddings", Answer),
    "openai.resources.responses": ("openai.response", "chat", ResponseAnswer),
}
"""Module of the client: name of the span, name of the operation, what collects the answer."""
_OWNERS = ("Completions", "Embeddings", "Responses")
_METHODS = ("create", "parse")
_LEFT_OUT = ("Omit", "NotGiven")
"""Classes of the client for arguments that are left out: the first is missing in older versions."""
_LISTS = ("messages", "input", "prompt", "tools", "functions")
"""Arguments that may be iterators, which can be read once only."""
_SUPPRESSED = ("suppress_language_model_instrumentation",)
_RAW_HEADER = "x-stainless-raw-response"


def instrument_all(tracer_provider: TracerProvider | None = None) -> bool:
    """Record calls of the ``openai`` client, and of LiteLLM where it is used, as spans of ``tracer_provider``.

    None is the global provider. The patch is for the process and made once: True when it is there, False, with a
    warning, when the client cannot be loaded. It sends nothing anywhere and adds no header to requests. Loading takes a
    good part of a second of processor time, so a runner does it before its first task.
    """
    from opentelemetry import trace

    with _LOCK, _collector_paused():
        try:
            importlib.import_module("openai")
        except ImportError as error:
            _log.warning("Calls of the OpenAI client will not be recorded: %s", error)
            return False
        tracer = (tracer_provider or trace.get_tracer_provider()).get_tracer(SCOPE)
        for module, owner, method in _patchable():
            held = vars(owner)[method]
            if not _is_ours(held):
                setattr(owner, method, _recorded(held, owner.__name__.startswith("Async"), module, tracer))
        record_litellm(tracer)
        return True


def uninstrument_all() -> None:
    """Take the patch back; does nothing without one."""
    with _LOCK:
        for _, owner, method in _patchable():
            held = vars(owner)[method]
            if _is_ours(held):
                setattr(owner, method, held.__wrapped__)
        leave_litellm()


def _patchable() -> Iterator[tuple[str, type[Any], str]]:
    """Module, class and method of each call that the installed version of the client has."""
    for module in _CALLS:
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        for name in [prefix + owner for owner in _OWNERS for prefix in ("", "Async")]:
            owner = getattr(found, name, None)  # not vars(): the client loads its classes on first access
            for method in _METHODS:
                if isinstance(owner, type) and method in vars(owner):
                    yield module, owner, method


def _is_ours(held: Any) -> bool:
    return hasattr(held, CALL)


@contextmanager
def _collector_paused() -> Generator[None, None, None]:
    """Loading makes a thousand classes that all stay: looking for garbage among them was a sixth of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _recorded(method: Callable[..., Any], asynchronous: bool, module: str, tracer: Tracer) -> Callable[..., Any]:
    """``method`` with a span around it; the span of a stream ends with the stream."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        recording = _begin(module, tracer, self, kwargs)
        if recording is None:
            return method(self, *args, **kwargs)
        with recording.current():
            answer = method(self, *args, **kwargs)
        return recording.answered(answer)

    @functools.wraps(method)
    async def call_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        recording = _begin(module, tracer, self, kwargs)
        if recording is None:
            return await method(self, *args, **kwargs)
        with recording.current():
            answer = await method(self, *args, **kwargs)
        return recording.answered(answer)

    made = call_async if asynchronous else call
    setattr(made, CALL, True)
    return made


def _begin(module: str, tracer: Tracer, owner: Any, kwargs: dict[str, Any]) -> ModelCall | None:
    """None where the call is part of another one, or OpenTelemetry instrumentation is suppressed.

    Iterators in ``kwargs`` become lists, so that the client can read them too.
    """
    from opentelemetry import context as otel_context
    from opentelemetry.trace import SpanKind

    keys = (*_SUPPRESSED, getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", None))
    if INSIDE.get() or any(key is not None and otel_context.get_value(key) for key in keys):
        return None
    kwargs.update({key: _read_once(kwargs[key]) for key in _LISTS if key in kwargs})
    name, operation, answer = _CALLS[module]
    outer = WITHIN.get()
    if outer is not None:
        outer.append(name)
    asked = {key: value for key, value in kwargs.items() if type(value).__name__ not in _LEFT_OUT}
    attributes: Attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "openai"}
    try:
        attributes["gen_ai.openai.api_base"] = shown(str(owner._client.base_url))
        headers = [key for key in asked.get("extra_headers") or () if str(key).lower() != _RAW_HEADER]
        if headers:  # their values are keys and tokens more often than not
            attributes["gen_ai.headers"] = str({key: "***" for key in headers})
        attributes.update(request_attributes(asked))
    except Exception as error:
        # The client itself raises about wrong arguments.
        _log.debug("The arguments of a model call could not be recorded: %r", error)
    return ModelCall(tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes), answer())


def _read_once(value: Any) -> Any:
    if type(value) is dict:
        return {key: _read_once(item) for key, item in cast("dict[Any, Any]", value).items()}
    if type(value) is list or isinstance(value, Iterator):
        return [_read_once(item) for item in cast("Iterator[Any]", value)]
    return value
