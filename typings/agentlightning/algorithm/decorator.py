"""What agentlightning.algorithm.decorator was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.functional import FunctionalAlgorithm as FunctionalAlgorithm
from agentlightning.algorithms.functional import algo as algo
