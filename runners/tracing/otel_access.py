"""OpenTelemetry's tracer and provider for code that makes spans of its own."""

from __future__ import annotations

import logging

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from .provider import UnlimitedTracerProvider, process_tracer, watch_global_provider

__all__ = ["get_tracer", "get_tracer_provider"]

_log = logging.getLogger(__name__)


def get_tracer_provider(inspect: bool = True) -> TracerProvider:
    """The provider of this process whose spans are recorded: the global one where somebody set one up.

    ``inspect`` logs which one it is, at DEBUG.
    """
    provider = watch_global_provider()
    if inspect:
        _log.debug(
            "Spans are recorded from %s with the resource %s", type(provider).__name__, provider.resource.attributes
        )
    return provider


def get_tracer(use_active_span_processor: bool = True) -> trace.Tracer:
    """A tracer whose spans are recorded; with False one whose spans nobody receives."""
    if use_active_span_processor:
        return process_tracer()
    return UnlimitedTracerProvider({}).get_tracer("agentlightning")
