"""The span of one model call: open from the request until the response was read, in whatever form."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ...core.errors import message_of
from ...core.model.span import Attributes
from .openai_body import Answer, EventPieces, plain

__all__ = ["CALL", "INSIDE", "SCOPE", "WITHIN", "ModelCall"]

_log = logging.getLogger(__name__)
SCOPE = "agentlightning.openai"
"""Name of the instrumentation scope of the spans."""
CALL = "_agentlightning_call"
"""Attribute of what we patched, and of a span or a stream whose answer is being read."""
INSIDE: ContextVar[bool] = ContextVar("agentlightning_inside_model_call", default=False)
"""Set while the client works: what it calls of itself is the same call."""
WITHIN: ContextVar[list[str] | None] = ContextVar("agentlightning_within_gateway", default=None)
"""Names of the calls that the client made inside of a library that may call models in another way too."""


class ModelCall:
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

        token = INSIDE.set(True)
        try:
            with trace.use_span(self._span, record_exception=False, set_status_on_exception=False):
                yield
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            INSIDE.reset(token)

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
            # The answer itself is valid, perhaps from another version of the client.
            _log.warning("The answer of a model call could not be recorded: %r", error)
            self._end(None)
        return answer

    def streams(self) -> None:
        """The answer comes in pieces, each given to :meth:`piece`, until :meth:`finish` or :meth:`fail`."""
        self._pieces = EventPieces(events=True)
        setattr(self._span, CALL, self)

    def piece(self, body: Any) -> None:
        """One more piece was read."""
        with self._lock:
            if not self._over:
                self._take(plain(one) for one in (body,))

    def _watch(self, response: Any) -> None:
        """Record the body while the program reads it: by pieces or as bytes, in this thread or another, or not at all."""
        self._pieces = EventPieces("text/event-stream" in str(response.headers.get("content-type", "")))
        if response.is_closed:
            self._feed(response.content)
            self.finish()
            return
        setattr(self._span, CALL, self)
        iter_bytes, aiter_bytes = response.iter_bytes, response.aiter_bytes
        close, aclose = response.close, response.aclose

        def read(*args: Any, **kwargs: Any) -> Iterator[bytes]:
            with self._to_its_end():
                for data in iter_bytes(*args, **kwargs):
                    for piece in self._pieces.split(data):
                        self._between(piece)
                        yield piece
                        self._reading = True

        async def read_async(*args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
            with self._to_its_end():
                async for data in aiter_bytes(*args, **kwargs):
                    for piece in self._pieces.split(data):
                        self._between(piece)
                        yield piece
                        self._reading = True

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

    def _between(self, data: bytes) -> None:
        self._feed(data)
        if self._pieces.done:
            self.finish()
        self._reading = False

    def _closed(self) -> None:
        # A body that was read to its end is closed from inside, before its last bytes are given out.
        if not self._reading:
            self.finish()

    def _feed(self, data: bytes) -> None:
        with self._lock:
            if not self._over:
                self._take(self._pieces.feed(data))

    def _take(self, bodies: Iterator[Any] | list[Any]) -> None:
        try:
            for body in bodies:
                if self._first is None:
                    self._first = time.time()
                self._answer.take(body)
        except Exception as error:
            # Who reads the answer gets it all the same.
            _log.warning("A part of a model's answer could not be recorded: %r", error)

    def attributes(self) -> Attributes:
        """The attributes of the answer so far."""
        with self._lock:
            try:
                found = self._answer.attributes()
            except Exception as error:
                # An unexpected answer must fail neither the span nor its reader.
                _log.warning("The answer of a model call could not be recorded: %r", error)
                return {}
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
            except Exception as error_of_text:
                _log.debug("An exception of a model call has no message: %r", error_of_text)
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
