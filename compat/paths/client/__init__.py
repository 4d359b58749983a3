"""The import path agentlightning.client of the older releases."""

from agentlightning.compat.client import AgentLightningClient as AgentLightningClient
from agentlightning.compat.client import DevTaskLoader as DevTaskLoader
