"""The import path agentlightning.tracer.dummy of the older releases."""

from agentlightning.runners.tracing.dummy import DummyTracer as DummyTracer
