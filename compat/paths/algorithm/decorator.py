"""What agentlightning.algorithm.decorator was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.decorator import FunctionalAlgorithm as FunctionalAlgorithm
from agentlightning.algorithms.decorator import algo as algo
