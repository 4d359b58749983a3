"""The import path agentlightning.algorithm.decorator of the older releases."""

from agentlightning.algorithms.decorator import FunctionalAlgorithm as FunctionalAlgorithm
from agentlightning.algorithms.decorator import algo as algo
