"""The import path agentlightning.adapter of the older releases."""

from .base import Adapter as Adapter
from .base import OtelTraceAdapter as OtelTraceAdapter
from .base import TraceAdapter as TraceAdapter
from .messages import TraceToMessages as TraceToMessages
from .triplet import LlmProxyTraceToTriplet as LlmProxyTraceToTriplet
from .triplet import TracerTraceToTriplet as TracerTraceToTriplet
from .triplet import TraceToTripletBase as TraceToTripletBase
