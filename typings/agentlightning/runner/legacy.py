"""What agentlightning.runner.legacy was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.legacy_runner import LegacyAgentRunner as LegacyAgentRunner
