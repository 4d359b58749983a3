"""What agentlightning.tracer.base was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.tracer import Tracer as BaseTracer
from agentlightning.runners.tracer import Tracer as Tracer
from agentlightning.runners.active import clear_active_tracer as clear_active_tracer
from agentlightning.runners.active import get_active_tracer as get_active_tracer
from agentlightning.runners.active import set_active_tracer as set_active_tracer
