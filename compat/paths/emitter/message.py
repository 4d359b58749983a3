"""What agentlightning.emitter.message was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.emit.emitters import emit_message as emit_message
from agentlightning.core.spans.readers import get_message_value as get_message_value
