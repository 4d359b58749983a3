"""What agentlightning.server was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.compat.server import AgentLightningServer as AgentLightningServer
