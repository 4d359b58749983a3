"""What agentlightning.runner.base was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.worker.base import Runner as Runner
