"""The import path agentlightning.execution.shared_memory of the older releases."""

from agentlightning.algorithms.execution.shared_memory import (
    SharedMemoryExecutionStrategy as SharedMemoryExecutionStrategy,
)
