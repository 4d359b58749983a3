"""What agentlightning.client was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.compat.client import AgentLightningClient as AgentLightningClient
from agentlightning.compat.dev_tasks import DevTaskLoader as DevTaskLoader
