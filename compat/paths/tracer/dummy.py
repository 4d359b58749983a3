"""What agentlightning.tracer.dummy was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.tracing.dummy import DummyTracer as DummyTracer
