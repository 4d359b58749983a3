"""What agentlightning.client was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.projections.rest.legacy_client import AgentLightningClient as AgentLightningClient
from agentlightning.projections.rest.dev_tasks import DevTaskLoader as DevTaskLoader
