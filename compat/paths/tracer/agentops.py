"""What agentlightning.tracer.agentops was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.tracing.agentops import AgentOpsTracer as AgentOpsTracer
