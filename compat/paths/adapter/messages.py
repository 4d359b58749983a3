"""The import path agentlightning.adapter.messages of the older releases."""

from agentlightning.algorithms.adapters.messages import OpenAIMessages as OpenAIMessages
from agentlightning.algorithms.adapters.messages import TraceToMessages as TraceToMessages
