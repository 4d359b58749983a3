"""The import path agentlightning.emitter.message of the older releases."""

from agentlightning.core.spans.readers import get_message_value as get_message_value
from agentlightning.runners.emit import emit_message as emit_message
