"""What agentlightning.execution.base was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.execution.base import AlgorithmBundle as AlgorithmBundle
from agentlightning.algorithms.execution.base import ExecutionStrategy as ExecutionStrategy
from agentlightning.algorithms.execution.base import RunnerBundle as RunnerBundle
