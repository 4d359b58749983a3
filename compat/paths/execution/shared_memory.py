"""What agentlightning.execution.shared_memory was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.execution.shared_memory import SharedMemoryExecutionStrategy as SharedMemoryExecutionStrategy
