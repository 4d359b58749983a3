"""What agentlightning.execution was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.execution.client_server import ClientServerExecutionStrategy as ClientServerExecutionStrategy
from agentlightning.runners.stop_events import ExecutionEvent as ExecutionEvent
from agentlightning.algorithms.execution.base import ExecutionStrategy as ExecutionStrategy
from agentlightning.runners.stop_events import MultiprocessingEvent as MultiprocessingEvent
from agentlightning.algorithms.execution.shared_memory import SharedMemoryExecutionStrategy as SharedMemoryExecutionStrategy
from agentlightning.runners.stop_events import ThreadingEvent as ThreadingEvent
