"""The import path agentlightning.adapter.triplet of the older releases."""

from agentlightning.algorithms.adapters.llm_proxy import LlmProxyTraceToTriplet as LlmProxyTraceToTriplet
from agentlightning.algorithms.adapters.triplets import RewardMatchPolicy as RewardMatchPolicy
from agentlightning.algorithms.adapters.triplets import TracerTraceToTriplet as TracerTraceToTriplet
from agentlightning.algorithms.adapters.triplets import TraceToTripletBase as TraceToTripletBase
from agentlightning.algorithms.adapters.triplets import TraceTree as TraceTree
from agentlightning.algorithms.adapters.triplets import Transition as Transition
from agentlightning.algorithms.adapters.triplets import TripletExporter as TripletExporter
