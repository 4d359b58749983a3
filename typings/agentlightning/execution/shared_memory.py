"""What agentlightning.execution.shared_memory was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.shared_memory import SharedMemoryExecutionStrategy as SharedMemoryExecutionStrategy
