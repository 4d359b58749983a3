"""The import path agentlightning.runner.agent of the older releases."""

from agentlightning.runners.worker.runner import LitAgentRunner as LitAgentRunner
