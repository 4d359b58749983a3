"""The import path agentlightning.execution.base of the older releases."""

from agentlightning.algorithms.execution.base import AlgorithmBundle as AlgorithmBundle
from agentlightning.algorithms.execution.base import ExecutionStrategy as ExecutionStrategy
from agentlightning.algorithms.execution.base import RunnerBundle as RunnerBundle
