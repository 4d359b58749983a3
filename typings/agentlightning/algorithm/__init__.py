"""What agentlightning.algorithm was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.base import Algorithm as Algorithm
from agentlightning.algorithms.baseline import Baseline as Baseline
from agentlightning.algorithms.baseline import FastAlgorithm as FastAlgorithm
from agentlightning.algorithms.functional import algo as algo
