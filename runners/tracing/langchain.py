"""A callback handler for LangChain and LangGraph: chains, graph nodes and tools as spans around the model calls."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, cast

from ...core.errors import OptionalDependencyError

__all__ = ["langchain_handler"]

_LONGEST = 20_000
"""Characters of an input or output that are kept: the prompts are on the spans of the model calls."""


def langchain_handler(tags: list[str] | None = None) -> Any:
    """A handler for ``config={"callbacks": [handler]}``; OptionalDependencyError without LangChain.

    Each chain or graph node becomes ``langchain.Chain.<name>`` with the name as ``lc_name``, each tool
    ``langchain.Tool.<name>``. Model calls made inside are their children, recorded by the instrumentation of their client.
    """
    return _handler_class()(tags or [])


class _Runs:
    """The open spans by LangChain's run ids, and the contexts that model calls interrupted."""

    def __init__(self, tags: list[str]) -> None:
        self._tags = tags
        self._spans: dict[Any, Any] = {}
        self._before: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def start(self, kind: str, name: str, given: Any, run_id: Any, parent_run_id: Any) -> None:
        """A chain or tool begins."""
        from opentelemetry import context, trace

        from .provider import process_tracer

        with self._lock:
            parent = self._spans.get(parent_run_id)
        around = context.get_current() if parent is None else trace.set_span_in_context(parent)
        span = process_tracer().start_span(f"langchain.{kind}.{name}", context=around)
        span.set_attribute("lc_name", name)
        span.set_attribute("langchain.input", _text(given))
        if self._tags:
            span.set_attribute("langchain.tags", self._tags)
        with self._lock:
            self._spans[run_id] = span

    def end(self, run_id: Any, output: Any = None, error: BaseException | None = None) -> None:
        """It returned, or raised."""
        from opentelemetry import trace

        with self._lock:
            span = self._spans.pop(run_id, None)
        if span is None:
            return
        if error is None:
            span.set_attribute("langchain.output", _text(output))
            span.set_status(trace.StatusCode.OK)
        else:
            span.record_exception(error)
            span.set_status(trace.StatusCode.ERROR, str(error))
        span.end()

    def model_call(self, run_id: Any, parent_run_id: Any) -> None:
        """A model is called next in this context: its span shall be a child of the chain's."""
        from opentelemetry import context, trace

        with self._lock:
            parent = self._spans.get(parent_run_id)
            if parent is None:
                return
            self._before[run_id] = context.get_current()
        context.attach(trace.set_span_in_context(parent))

    def model_done(self, run_id: Any) -> None:
        """Put the context back; not by its token, since a stream may end in another context than it began."""
        from opentelemetry import context

        with self._lock:
            before = self._before.pop(run_id, None)
        if before is not None:
            context.attach(before)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:_LONGEST]


def _name(serialized: Any, kwargs: dict[str, Any]) -> str:
    known: Any = cast("dict[str, Any]", serialized) if isinstance(serialized, dict) else {}
    path: Any = known.get("id")
    return str(kwargs.get("name") or known.get("name") or (path[-1] if path else "unnamed"))


@cache
def _handler_class() -> Callable[[list[str]], Any]:
    try:
        from langchain_core.callbacks import BaseCallbackHandler
    except ImportError as error:
        raise OptionalDependencyError("The LangChain handler", install="langchain-core") from error

    class Handler(BaseCallbackHandler):
        """Translates LangChain's callbacks; called in the thread or task of the run."""

        run_inline = True

        def __init__(self, tags: list[str]) -> None:
            self.runs = _Runs(tags)

        def on_chain_start(
            self, serialized: Any, inputs: Any, *, run_id: Any, parent_run_id: Any = None, **kwargs: Any
        ) -> None:
            self.runs.start("Chain", _name(serialized, kwargs), inputs, run_id, parent_run_id)

        def on_chain_end(self, outputs: Any, *, run_id: Any, **kwargs: Any) -> None:
            self.runs.end(run_id, outputs)

        def on_chain_error(self, error: BaseException, *, run_id: Any, **kwargs: Any) -> None:
            self.runs.end(run_id, error=error)

        def on_tool_start(
            self, serialized: Any, input_str: str, *, run_id: Any, parent_run_id: Any = None, **kwargs: Any
        ) -> None:
            self.runs.start("Tool", _name(serialized, kwargs), input_str, run_id, parent_run_id)

        def on_tool_end(self, output: Any, *, run_id: Any, **kwargs: Any) -> None:
            self.runs.end(run_id, output)

        def on_tool_error(self, error: BaseException, *, run_id: Any, **kwargs: Any) -> None:
            self.runs.end(run_id, error=error)

        def on_chat_model_start(
            self, serialized: Any, messages: Any, *, run_id: Any, parent_run_id: Any = None, **kwargs: Any
        ) -> None:
            self.runs.model_call(run_id, parent_run_id)

        def on_llm_start(self, serialized: Any, prompts: Any, *, run_id: Any, parent_run_id: Any = None, **kwargs: Any) -> None:
            self.runs.model_call(run_id, parent_run_id)

        def on_llm_end(self, response: Any, *, run_id: Any, **kwargs: Any) -> None:
            self.runs.model_done(run_id)

        def on_llm_error(self, error: BaseException, *, run_id: Any, **kwargs: Any) -> None:
            self.runs.model_done(run_id)

    return Handler
