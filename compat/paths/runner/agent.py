"""What agentlightning.runner.agent was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.worker.runner import LitAgentRunner as LitAgentRunner
