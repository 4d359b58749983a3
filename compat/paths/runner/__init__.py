"""What agentlightning.runner was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.compat.runner import LegacyAgentRunner as AgentRunner
from agentlightning.compat.runner import LegacyAgentRunner as LegacyAgentRunner
from agentlightning.runners.worker.runner import LitAgentRunner as LitAgentRunner
from agentlightning.runners.worker.base import Runner as Runner
