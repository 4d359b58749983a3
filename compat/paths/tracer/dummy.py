"""The import path agentlightning.tracer.dummy of the older releases."""

from agentlightning.runners.tracing.base import DummyTracer as DummyTracer
