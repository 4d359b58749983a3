"""The import path agentlightning.tracer of the older releases."""

from .agentops import AgentOpsTracer as AgentOpsTracer
from .base import BaseTracer as BaseTracer
from .base import Tracer as Tracer
from .base import clear_active_tracer as clear_active_tracer
from .base import get_active_tracer as get_active_tracer
from .base import set_active_tracer as set_active_tracer
from .dummy import DummyTracer as DummyTracer
from .otel import OtelTracer as OtelTracer
from .triplet import TripletExporter as TripletExporter
