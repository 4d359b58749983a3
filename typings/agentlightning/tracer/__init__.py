"""What agentlightning.tracer was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.agentops_tracer import AgentOpsTracer as AgentOpsTracer
from agentlightning.runners.tracer import Tracer as BaseTracer
from agentlightning.runners.dummy_tracer import DummyTracer as DummyTracer
from agentlightning.runners.otel_tracer import OtelTracer as OtelTracer
from agentlightning.runners.tracer import Tracer as Tracer
from agentlightning.algorithms.adapters.triplets import TripletExporter as TripletExporter
from agentlightning.runners.active import clear_active_tracer as clear_active_tracer
from agentlightning.runners.active import get_active_tracer as get_active_tracer
from agentlightning.runners.active import set_active_tracer as set_active_tracer
