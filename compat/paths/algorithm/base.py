"""What agentlightning.algorithm.base was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.algorithm import Algorithm as Algorithm
