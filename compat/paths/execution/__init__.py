"""The import path agentlightning.execution of the older releases."""

from .base import ExecutionStrategy as ExecutionStrategy
from .client_server import ClientServerExecutionStrategy as ClientServerExecutionStrategy
from .events import ExecutionEvent as ExecutionEvent
from .events import MultiprocessingEvent as MultiprocessingEvent
from .events import ThreadingEvent as ThreadingEvent
from .shared_memory import SharedMemoryExecutionStrategy as SharedMemoryExecutionStrategy
