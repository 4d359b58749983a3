"""What agentlightning.algorithm was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.algorithm import Algorithm as Algorithm
from agentlightning.algorithms.baseline import Baseline as Baseline
from agentlightning.algorithms.baseline import FastAlgorithm as FastAlgorithm
from agentlightning.algorithms.decorator import algo as algo
