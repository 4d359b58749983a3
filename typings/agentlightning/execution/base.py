"""What agentlightning.execution.base was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.execution import AlgorithmBundle as AlgorithmBundle
from agentlightning.algorithms.execution import ExecutionStrategy as ExecutionStrategy
from agentlightning.algorithms.execution import RunnerBundle as RunnerBundle
