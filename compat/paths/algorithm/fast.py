"""What agentlightning.algorithm.fast was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.baseline import Baseline as Baseline
from agentlightning.algorithms.baseline import FastAlgorithm as FastAlgorithm
