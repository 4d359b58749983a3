"""What agentlightning.algorithm.base was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.base import Algorithm as Algorithm
