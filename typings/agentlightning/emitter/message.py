"""What agentlightning.emitter.message was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.emitters import emit_message as emit_message
from agentlightning.runners.readers import get_message_value as get_message_value
