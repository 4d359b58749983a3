"""What agentlightning.server was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.legacy_server import AgentLightningServer as AgentLightningServer
