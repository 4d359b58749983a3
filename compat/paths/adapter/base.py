"""The import path agentlightning.adapter.base of the older releases."""

from agentlightning.algorithms.adapters.base import Adapter as Adapter
from agentlightning.algorithms.adapters.base import OtelTraceAdapter as OtelTraceAdapter
from agentlightning.algorithms.adapters.base import TraceAdapter as TraceAdapter
