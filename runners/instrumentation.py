"""Records calls of the OpenAI client as spans, whatever form the answer is asked for in, and takes the patch back."""

from __future__ import annotations

import functools
import gc
import importlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ..core.open_log import shown
from ..core.spans import Attributes
from .failures import message_of
from .openai_answers import Answer, ChoicesAnswer, EventPieces, ResponseAnswer, plain, request_attributes

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer, TracerProvider

__all__ = ["SCOPE", "answer_so_far", "instrument_all", "uninstrument_all"]

_log = logging.getLogger(__name__)
_LOCK = threading.Lock()
SCOPE = "agentlightning.openai"
"""Name of the instrumentation scope of the spans."""
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
_SUPPRESSED = ("suppress_language_model_instrumentation",)
_RAW_HEADER = "x-stainless-raw-response"
_CALL = "_agentlightning_call"
_INSIDE: ContextVar[bool] = ContextVar("agentlightning_inside_model_call", default=False)
"""Set while the client works: what it calls of itself is the same call."""


def instrument_all(tracer_provider: TracerProvider | None = None) -> bool:
    """Record calls of the ``openai`` client as spans of ``tracer_provider`` (None: the global one).

    The patch is for the process and made once: True when it is there, False, with a warning, when the client cannot be
    loaded. It sends nothing anywhere and adds no header to requests. Loading takes a good part of a second of processor
    time, so a runner does it before its first task.
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
        return True


def uninstrument_all() -> None:
    """Take the patch back; does nothing without one."""
    with _LOCK:
        for _, owner, method in _patchable():
            held = vars(owner)[method]
            if _is_ours(held):
                setattr(owner, method, held.__wrapped__)


def _patchable() -> Iterator[tuple[str, type[Any], str]]:
    """Module, class and method of each call that the installed version of the client has."""
    for module in _CALLS:
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        for name in [prefix + owner for owner in _OWNERS for prefix in ("", "Async")]:
            owner = getattr(found, name, None)  # not vars(): the client loads its classes when they are asked for
            for method in _METHODS:
                if isinstance(owner, type) and method in vars(owner):
                    yield module, owner, method


def _is_ours(held: Any) -> bool:
    return hasattr(held, _CALL)


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
    setattr(made, _CALL, True)
    return made


def _begin(module: str, tracer: Tracer, owner: Any, kwargs: dict[str, Any]) -> _ModelCall | None:
    """None where the call is part of another one, or somebody asked OpenTelemetry to leave it out."""
    from opentelemetry import context as otel_context
    from opentelemetry.trace import SpanKind

    keys = (*_SUPPRESSED, getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", None))
    if _INSIDE.get() or any(key is not None and otel_context.get_value(key) for key in keys):
        return None
    name, operation, answer = _CALLS[module]
    asked = {key: value for key, value in kwargs.items() if type(value).__name__ not in _LEFT_OUT}
    attributes: Attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "openai"}
    try:
        attributes["gen_ai.openai.api_base"] = shown(str(owner._client.base_url))
        headers = [key for key in asked.get("extra_headers") or () if str(key).lower() != _RAW_HEADER]
        if headers:  # their values are keys and tokens more often than not
            attributes["gen_ai.headers"] = str({key: "***" for key in headers})
        attributes.update(request_attributes(asked))
    except Exception as error:
        # The client says what is wrong with the arguments; it must not be said by us.
        _log.debug("The arguments of a model call could not be recorded: %r", error)
    return _ModelCall(tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes), answer())


def answer_so_far(span: Any) -> Attributes:
    """Of an answer that nobody read to its end, when its span ends; empty for other spans."""
    call = getattr(span, _CALL, None)
    return call.attributes() if isinstance(call, _ModelCall) else {}


class _ModelCall:
    """One call: its span, and what came of its answer so far."""

    def __init__(self, span: Any, answer: Answer) -> None:
        self._span = span
        self._answer = answer
        self._pieces = EventPieces(events=False)
        self._began = time.time()
        self._first: float | None = None
        self._over = False
        self._reading = False
        self._lock = threading.RLock()

    @contextmanager
    def current(self) -> Generator[None, None, None]:
        """The block is the call; what it raises ends the span."""
        from opentelemetry import trace

        token = _INSIDE.set(True)
        try:
            with trace.use_span(self._span, record_exception=False, set_status_on_exception=False):
                yield
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            _INSIDE.reset(token)

    def answered(self, answer: Any) -> Any:
        """``answer`` as the client gives it: the span ends now, or once its body was read."""
        response = getattr(answer, "http_response", None) or getattr(answer, "response", None)
        try:
            if response is not None and hasattr(response, "iter_bytes"):
                self._watch(response)
            else:
                self._take([plain(answer)])
                self.finish()
        except Exception as error:
            # It is a good answer all the same, perhaps of a client that is not the one we know.
            _log.warning("The answer of a model call could not be recorded: %r", error)
            self._end(None)
        return answer

    def _watch(self, response: Any) -> None:
        """Read along with whoever reads the body: by pieces or as bytes, in this thread or another, or not at all."""
        self._pieces = EventPieces("text/event-stream" in str(response.headers.get("content-type", "")))
        if response.is_closed:
            self._feed(response.content)
            self.finish()
            return
        setattr(self._span, _CALL, self)
        iter_bytes, aiter_bytes = response.iter_bytes, response.aiter_bytes
        close, aclose = response.close, response.aclose

        def read(*args: Any, **kwargs: Any) -> Iterator[bytes]:
            with self._to_its_end():
                for data in iter_bytes(*args, **kwargs):
                    for piece in self._pieces.split(data):
                        yield self._between(piece)

        async def read_async(*args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
            with self._to_its_end():
                async for data in aiter_bytes(*args, **kwargs):
                    for piece in self._pieces.split(data):
                        yield self._between(piece)

        def closed() -> None:
            close()
            self._closed()

        async def closed_async() -> None:
            await aclose()
            self._closed()

        response.iter_bytes, response.aiter_bytes = read, read_async
        response.close, response.aclose = closed, closed_async

    @contextmanager
    def _to_its_end(self) -> Generator[None, None, None]:
        self._reading = True
        try:
            yield
        except GeneratorExit:
            self.finish()
            raise
        except BaseException as error:
            self.fail(error)
            raise
        self.finish()

    def _between(self, data: bytes) -> bytes:
        self._feed(data)
        if self._pieces.done:
            self.finish()
        return data

    def _closed(self) -> None:
        # A body that was read to its end is closed from inside, before its last bytes are given out.
        if not self._reading:
            self.finish()

    def _feed(self, data: bytes) -> None:
        with self._lock:
            if not self._over:
                self._take(self._pieces.feed(data))

    def _take(self, bodies: Iterator[Any] | list[Any]) -> None:
        for body in bodies:
            if self._first is None:
                self._first = time.time()
            self._answer.take(body)

    def attributes(self) -> Attributes:
        """What the answer says so far."""
        with self._lock:
            found = self._answer.attributes()
            if self._pieces.events and self._first is not None:
                found["llm.openai.stream.chunk_count"] = self._answer.pieces
                found["gen_ai.streaming.time_to_first_token"] = max(0.0, self._first - self._began)
                found["gen_ai.streaming.time_to_generate"] = max(0.0, time.time() - self._first)
            return found

    def fail(self, error: BaseException) -> None:
        """The call, or the reading of its answer, raised this."""
        if self._span.is_recording():
            self._span.set_attribute("error.type", type(error).__name__)
            try:
                self._span.record_exception(error)
            except Exception as odd:
                _log.debug("An exception of a model call has no message: %r", odd)
        self._end(message_of(error))

    def finish(self) -> None:
        """There is no more to come."""
        with self._lock:
            if not self._over:
                self._take(self._pieces.end())
        self._end(self._answer.error)

    def _end(self, error: str | None) -> None:
        from opentelemetry.trace import Status, StatusCode

        with self._lock:
            over, self._over = self._over, True
        if over or not self._span.is_recording():
            return
        self._span.set_attributes(self.attributes())
        self._span.set_status(Status(StatusCode.OK) if error is None else Status(StatusCode.ERROR, error))
        self._span.end()
