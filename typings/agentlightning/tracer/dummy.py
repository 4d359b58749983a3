"""What agentlightning.tracer.dummy was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.dummy_tracer import DummyTracer as DummyTracer
