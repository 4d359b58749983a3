"""What agentlightning.tracer.otel was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.otel_provider import LightningSpanProcessor as LightningSpanProcessor
from agentlightning.runners.otel_tracer import OtelTracer as OtelTracer
