"""What agentlightning.adapter was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.adapters.base import Adapter as Adapter
from agentlightning.algorithms.adapters.llm_proxy import LlmProxyTraceToTriplet as LlmProxyTraceToTriplet
from agentlightning.algorithms.adapters.base import OtelTraceAdapter as OtelTraceAdapter
from agentlightning.algorithms.adapters.base import TraceAdapter as TraceAdapter
from agentlightning.algorithms.adapters.messages import TraceToMessages as TraceToMessages
from agentlightning.algorithms.adapters.triplets import TraceToTripletBase as TraceToTripletBase
from agentlightning.algorithms.adapters.triplets import TracerTraceToTriplet as TracerTraceToTriplet
