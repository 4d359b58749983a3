"""Records calls of the OpenAI client as spans, whatever the form of the answer, and removes the patch."""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from ...core.importing import ImportHook
from ...core.log.open_log import shown
from ...core.model.span import Attributes
from .call_span import CALL, INSIDE, SCOPE, WITHIN, ModelCall
from .litellm_patch import LITELLM, leave_litellm, record_litellm
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
_MODULES = {name: call for call in _CALLS for name in (call, f"{call}.{call.rpartition('.')[2]}")}
"""Modules that define the classes, and their names in _CALLS: where one of those is a package, a module in it does."""
_OWNERS = ("Completions", "Embeddings", "Responses")
_METHODS = ("create", "parse")
_LEFT_OUT = ("Omit", "NotGiven")
"""Classes of the client for arguments that are left out: the first is missing in older versions."""
_LISTS = ("messages", "input", "prompt", "tools", "functions")
"""Arguments that may be iterators, which can be read once only."""
_SUPPRESSED = ("suppress_language_model_instrumentation",)
_RAW_HEADER = "x-stainless-raw-response"


def instrument_all(tracer_provider: TracerProvider | None = None) -> bool:
    """Record calls of the ``openai`` client, and of LiteLLM, as spans of ``tracer_provider``, where the program uses them.

    None is the global provider. The patch is for the process and made once: True when it is there, False, with a
    warning, when the client is not installed. It sends nothing anywhere and adds no header to requests. A module of the
    client is patched when the program imports it: loading them all takes half a second of processor time.
    """
    from opentelemetry import trace

    if not _is_installed("openai"):
        _log.warning("Calls of the OpenAI client will not be recorded: it is not installed.")
        return False
    with _LOCK:
        if not any(isinstance(finder, ImportHook) for finder in sys.meta_path):
            tracer = (tracer_provider or trace.get_tracer_provider()).get_tracer(SCOPE)
            acts: dict[str, Callable[[ModuleType], None]] = {LITELLM: partial(record_litellm, tracer=tracer)}
            for module, call in _MODULES.items():
                acts[module] = partial(_record_openai, call=call, tracer=tracer)
            ImportHook(acts).install()
        return True


def uninstrument_all() -> None:
    """Take the patch back; does nothing without one."""
    with _LOCK:
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, ImportHook)]
        for module in _MODULES:
            for owner, method in _patchable(sys.modules.get(module)):
                held = vars(owner)[method]
                if _is_ours(held):
                    setattr(owner, method, held.__wrapped__)
        leave_litellm()


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is loaded, and says nothing of where it came from
        return True


def _record_openai(module: ModuleType, call: str, tracer: Tracer) -> None:
    for owner, method in _patchable(module):
        held = vars(owner)[method]
        if not _is_ours(held):
            setattr(owner, method, _recorded(held, owner.__name__.startswith("Async"), call, tracer))


def _patchable(module: ModuleType | None) -> Iterator[tuple[type[Any], str]]:
    """Class and method of each call that the module has."""
    for name in [prefix + owner for owner in _OWNERS for prefix in ("", "Async")]:
        owner = vars(module).get(name) if module is not None else None
        for method in _METHODS:
            if isinstance(owner, type) and method in vars(owner):
                yield owner, method


def _is_ours(held: Any) -> bool:
    return hasattr(held, CALL)


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
