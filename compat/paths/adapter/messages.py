"""What agentlightning.adapter.messages was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.adapters.messages import OpenAIMessages as OpenAIMessages
from agentlightning.algorithms.adapters.messages import TraceToMessages as TraceToMessages
