"""The import path agentlightning.tracer.base of the older releases."""

from agentlightning.runners.tracing.base import Tracer as Tracer
from agentlightning.runners.tracing.base import clear_active_tracer as clear_active_tracer
from agentlightning.runners.tracing.base import get_active_tracer as get_active_tracer
from agentlightning.runners.tracing.base import set_active_tracer as set_active_tracer

BaseTracer = Tracer
