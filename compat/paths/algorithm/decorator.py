"""The import path agentlightning.algorithm.decorator of the older releases."""

from agentlightning.algorithms.algorithm import FunctionalAlgorithm as FunctionalAlgorithm
from agentlightning.algorithms.algorithm import algo as algo
