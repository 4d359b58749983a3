"""Token ids and log probabilities of answers: what servers for training add, and the instrumentation leaves out."""

from __future__ import annotations

import importlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

from ..core.spans import Attributes

__all__ = ["Tokens", "drop_omitted", "tap_openai", "tokens_so_far", "untap_openai"]

_TAPPED = (
    ("openai.resources.chat.completions", "Completions", "create"),
    ("openai.resources.chat.completions", "Completions", "parse"),
    ("openai.resources.chat.completions", "AsyncCompletions", "create"),
    ("openai.resources.chat.completions", "AsyncCompletions", "parse"),
    ("openai.resources.completions", "Completions", "create"),
    ("openai.resources.completions", "AsyncCompletions", "create"),
)
_RESPONSES = tuple(("openai.resources.responses", owner, "create") for owner in ("Responses", "AsyncResponses"))
_LEFT_OUT = ("Omit", "NotGiven")
"""Classes of the client: the first is missing in older versions."""
_SO_FAR = "_agentlightning_tokens"


class Tokens:
    """Collects the ids and log probabilities of the first choice, from one answer or from the pieces of a stream."""

    def __init__(self) -> None:
        self._prompt: list[int] = []
        self._response: list[int] = []
        self._logprobs: dict[str, list[Any]] = {}

    def take(self, answer: Any) -> None:
        """An answer or a piece, as the client gives it; whatever does not look like token ids is passed over."""
        choices = _field(answer, "choices")
        choice: Any = cast("list[Any]", choices)[0] if isinstance(choices, list) and choices else None
        if not self._prompt:
            self._prompt = _ids(_field(answer, "prompt_token_ids")) or _ids(_field(choice, "prompt_token_ids"))
        of_all = _field(answer, "response_token_ids")
        self._response += (
            (_ids(of_all[0]) if isinstance(of_all, list) and of_all else [])
            or _ids(_field(choice, "token_ids"))
            or _ids(_field(_field(choice, "provider_specific_fields"), "token_ids"))
        )
        logprobs = _field(choice, "logprobs")
        for part in ("content", "refusal"):
            items = _field(logprobs, part)
            if isinstance(items, list):
                self._logprobs.setdefault(part, []).extend(_plain(item) for item in cast("list[Any]", items))

    def attributes(self) -> Attributes:
        """``prompt_token_ids``, ``response_token_ids`` and, as JSON, ``logprobs.content`` and ``.refusal``, if given."""
        found: Attributes = {}
        if self._prompt:
            found["prompt_token_ids"] = self._prompt
        if self._response:
            found["response_token_ids"] = self._response
        return {**found, **{f"logprobs.{part}": json.dumps(items) for part, items in self._logprobs.items()}}


def _field(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).get(name)
    return getattr(value, name, None)


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list):
        return []
    items = cast("list[Any]", value)
    return list(items) if all(type(item) is int for item in items) else []


def _plain(item: Any) -> Any:
    dump = getattr(item, "model_dump", None)
    return dump(mode="json") if callable(dump) else item


def tap_openai() -> None:
    """Put the ids of every answer on the span that is current while the client is called.

    To be done before the instrumentation patches the client, so that its span is the current one. Does
    nothing to what is tapped already.
    """
    from wrapt import wrap_function_wrapper

    for module, owner, method in _TAPPED:
        held = _held(module, owner, method)
        if held is not None and not any(_is_ours(layer) for layer in _layers(held)):
            wrap_function_wrapper(module, f"{owner}.{method}", _call_async if owner.startswith("Async") else _call)


def drop_omitted() -> None:
    """Leave out arguments that say they are left out, as ``chat.completions.stream`` and frameworks pass them.

    To be done after the instrumentation patched the client: it would warn of each of them, eight times a call.
    """
    from wrapt import wrap_function_wrapper

    for module, owner, method in (*_TAPPED, *_RESPONSES):
        if _held(module, owner, method) is not None:
            wrap_function_wrapper(module, f"{owner}.{method}", _given)


def _held(module: str, owner: str, method: str) -> Any:
    try:
        return cast("dict[str, Any]", vars(getattr(importlib.import_module(module), owner))).get(method)
    except (ImportError, AttributeError):
        return None  # older than that


def _given(wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    return wrapped(*args, **{name: value for name, value in kwargs.items() if type(value).__name__ not in _LEFT_OUT})


def untap_openai(scope: str) -> None:
    """Take it back, and with it the wrappers of the instrumentation ``scope``, whose own way of doing so misses them."""
    for name in _PATCHED_MODULES:
        for owner in [value for value in vars(importlib.import_module(name)).values() if isinstance(value, type)]:
            for method, held in list(vars(owner).items()):
                layers = list(_layers(held))
                kept = next((layer for layer in layers if not (_is_ours(layer) or _is_of(layer, scope))), held)
                if kept is not held:
                    setattr(owner, method, kept)


_PATCHED_MODULES = (
    "openai.resources.chat.completions",
    "openai.resources.completions",
    "openai.resources.embeddings",
    "openai.resources.images",
    "openai.resources.responses",
)


def _layers(function: Any) -> Iterator[Any]:
    """``function`` and what it wraps, the outermost first."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None) if hasattr(function, "_self_wrapper") else None


def _is_ours(layer: Any) -> bool:
    return getattr(layer, "_self_wrapper", None) in (_call, _call_async, _given)


def _is_of(layer: Any, scope: str) -> bool:
    wrapper = getattr(layer, "_self_wrapper", None)
    return str(getattr(wrapper, "__module__", "")).startswith(scope)


def _call(wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any) -> Any:
    return _noted(wrapped(*args, **kwargs))


async def _call_async(wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any) -> Any:
    return _noted(await wrapped(*args, **kwargs))


def _noted(answer: Any) -> Any:
    """``answer``, with its ids on the current span at once, or when its stream has ended."""
    from opentelemetry import trace

    span: Any = trace.get_current_span()
    if not span.is_recording() or not str(getattr(span, "name", "")).startswith("openai."):
        return answer
    tokens = Tokens()
    pieces: Any = getattr(answer, "_iterator", None)
    if hasattr(pieces, "__next__") or hasattr(pieces, "__anext__"):
        setattr(span, _SO_FAR, tokens)
    if hasattr(pieces, "__next__"):
        setattr(answer, "_iterator", _watched(pieces, tokens, span))  # noqa: B010 (not ours: no type knows it)
    elif hasattr(pieces, "__anext__"):
        setattr(answer, "_iterator", _watched_async(pieces, tokens, span))  # noqa: B010
    elif hasattr(answer, "choices"):
        tokens.take(answer)
        span.set_attributes(tokens.attributes())
    elif hasattr(answer, "parse") and _is_answer(answer):
        # with_raw_response, as LangChain calls it; what it parsed it keeps.
        tokens.take(answer.parse())
        span.set_attributes(tokens.attributes())
    return answer


def tokens_so_far(span: Any) -> Attributes:
    """Those of a stream that nobody read to its end, when its span ends; empty for other spans."""
    tokens = getattr(span, _SO_FAR, None)
    return tokens.attributes() if isinstance(tokens, Tokens) else {}


def _is_answer(raw: Any) -> bool:
    """Whether the body was read already, so that parsing it takes nothing from the caller; not so for a stream."""
    return "text/event-stream" not in str(getattr(raw, "headers", {}).get("content-type", ""))


def _watched(pieces: Iterator[Any], tokens: Tokens, span: Any) -> Iterator[Any]:
    for piece in pieces:
        tokens.take(piece)
        yield piece
    span.set_attributes(tokens.attributes())


async def _watched_async(pieces: AsyncIterator[Any], tokens: Tokens, span: Any) -> AsyncIterator[Any]:
    async for piece in pieces:
        tokens.take(piece)
        yield piece
    span.set_attributes(tokens.attributes())
