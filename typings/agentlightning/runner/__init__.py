"""What agentlightning.runner was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.legacy_runner import LegacyAgentRunner as AgentRunner
from agentlightning.runners.legacy_runner import LegacyAgentRunner as LegacyAgentRunner
from agentlightning.runners.runner import LitAgentRunner as LitAgentRunner
from agentlightning.runners.base import Runner as Runner
