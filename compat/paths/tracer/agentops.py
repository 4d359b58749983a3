"""The import path agentlightning.tracer.agentops of the older releases."""

from agentlightning.runners.tracing.agentops import AgentOpsTracer as AgentOpsTracer
