"""What agentlightning.execution.events was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.stop_events import ExecutionEvent as ExecutionEvent
from agentlightning.runners.stop_events import MultiprocessingEvent as MultiprocessingEvent
from agentlightning.runners.stop_events import ThreadingEvent as ThreadingEvent
