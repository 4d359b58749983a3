"""What agentlightning.tracer.otel was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.tracing.provider import LightningSpanProcessor as LightningSpanProcessor
from agentlightning.runners.tracing.otel import OtelTracer as OtelTracer
