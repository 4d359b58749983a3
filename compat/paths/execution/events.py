"""The import path agentlightning.execution.events of the older releases."""

from agentlightning.runners.stop_events import ExecutionEvent as ExecutionEvent
from agentlightning.runners.stop_events import MultiprocessingEvent as MultiprocessingEvent
from agentlightning.runners.stop_events import ThreadingEvent as ThreadingEvent
