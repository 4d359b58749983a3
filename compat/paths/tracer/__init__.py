"""What agentlightning.tracer was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.tracing.agentops import AgentOpsTracer as AgentOpsTracer
from agentlightning.runners.tracing.base import Tracer as BaseTracer
from agentlightning.runners.tracing.dummy import DummyTracer as DummyTracer
from agentlightning.runners.tracing.otel import OtelTracer as OtelTracer
from agentlightning.runners.tracing.base import Tracer as Tracer
from agentlightning.algorithms.adapters.triplets import TripletExporter as TripletExporter
from agentlightning.runners.tracing.active import clear_active_tracer as clear_active_tracer
from agentlightning.runners.tracing.active import get_active_tracer as get_active_tracer
from agentlightning.runners.tracing.active import set_active_tracer as set_active_tracer
