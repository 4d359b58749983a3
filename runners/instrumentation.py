"""Patches the OpenAI client so that its calls become spans, and takes the patch back."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .token_ids import drop_omitted, tap_openai, untap_openai

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["instrument_all", "uninstrument_all"]

_log = logging.getLogger(__name__)
_LOCK = threading.Lock()


def instrument_all(tracer_provider: TracerProvider | None = None) -> bool:
    """Record calls of the ``openai`` client as spans of ``tracer_provider`` (None: the global one).

    The patch is for the process and made once: True when it is ours or was there before, False,
    with a warning, when the instrumentation cannot be loaded. It sends nothing anywhere and adds
    no header to requests. Loading takes about a second of processor time, more on a
    busy machine, so a runner does it before its first task.
    """
    with _LOCK, _collector_paused():
        try:
            from opentelemetry.instrumentation.openai import (  # pyright: ignore[reportMissingTypeStubs]
                OpenAIInstrumentor,
            )
        except ImportError as error:
            _log.warning("Calls of the OpenAI client will not be recorded: %s", error)
            return False
        instrumentor = OpenAIInstrumentor(enable_trace_context_propagation=False, upload_base64_image=None)
        if not instrumentor.is_instrumented_by_opentelemetry:
            tap_openai()
            instrumentor.instrument(tracer_provider=tracer_provider)
            drop_omitted()
        return True


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


def uninstrument_all() -> None:
    """Take the patch back, whoever made it; does nothing without one."""
    with _LOCK:
        try:
            from opentelemetry.instrumentation.openai import (  # pyright: ignore[reportMissingTypeStubs]
                OpenAIInstrumentor,
            )
        except ImportError:
            return
        instrumentor = OpenAIInstrumentor()
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()
            untap_openai("opentelemetry.instrumentation.openai")
