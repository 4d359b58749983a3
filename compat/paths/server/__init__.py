"""The import path agentlightning.server of the older releases."""

from agentlightning.compat.server import AgentLightningServer as AgentLightningServer
