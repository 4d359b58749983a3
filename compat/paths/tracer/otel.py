"""The import path agentlightning.tracer.otel of the older releases."""

from agentlightning.runners.tracing.otel import OtelTracer as OtelTracer
from agentlightning.runners.tracing.provider import LightningSpanProcessor as LightningSpanProcessor
