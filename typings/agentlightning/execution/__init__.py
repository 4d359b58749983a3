"""What agentlightning.execution was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.client_server import ClientServerExecutionStrategy as ClientServerExecutionStrategy
from agentlightning.algorithms.execution import ExecutionEvent as ExecutionEvent
from agentlightning.algorithms.execution import ExecutionStrategy as ExecutionStrategy
from agentlightning.algorithms.execution import MultiprocessingEvent as MultiprocessingEvent
from agentlightning.algorithms.shared_memory import SharedMemoryExecutionStrategy as SharedMemoryExecutionStrategy
from agentlightning.algorithms.execution import ThreadingEvent as ThreadingEvent
