"""What agentlightning.adapter.base was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.adapters.base import Adapter as Adapter
from agentlightning.algorithms.adapters.base import OtelTraceAdapter as OtelTraceAdapter
from agentlightning.algorithms.adapters.base import TraceAdapter as TraceAdapter
