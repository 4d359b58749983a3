"""The import path agentlightning.runner.legacy of the older releases."""

from agentlightning.compat.runner import LegacyAgentRunner as LegacyAgentRunner
