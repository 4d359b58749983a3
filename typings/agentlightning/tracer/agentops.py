"""What agentlightning.tracer.agentops was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.agentops_tracer import AgentOpsTracer as AgentOpsTracer
