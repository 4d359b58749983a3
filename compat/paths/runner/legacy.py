"""What agentlightning.runner.legacy was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.compat.runner import LegacyAgentRunner as LegacyAgentRunner
