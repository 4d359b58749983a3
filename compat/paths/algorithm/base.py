"""The import path agentlightning.algorithm.base of the older releases."""

from agentlightning.algorithms.algorithm import Algorithm as Algorithm
