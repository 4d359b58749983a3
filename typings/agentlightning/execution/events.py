"""What agentlightning.execution.events was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.execution import ExecutionEvent as ExecutionEvent
from agentlightning.algorithms.execution import MultiprocessingEvent as MultiprocessingEvent
from agentlightning.algorithms.execution import ThreadingEvent as ThreadingEvent
