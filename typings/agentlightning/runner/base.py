"""What agentlightning.runner.base was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.base import Runner as Runner
