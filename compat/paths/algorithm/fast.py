"""The import path agentlightning.algorithm.fast of the older releases."""

from agentlightning.algorithms.baseline import Baseline as Baseline
from agentlightning.algorithms.baseline import FastAlgorithm as FastAlgorithm
