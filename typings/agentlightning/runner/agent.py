"""What agentlightning.runner.agent was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.runner import LitAgentRunner as LitAgentRunner
