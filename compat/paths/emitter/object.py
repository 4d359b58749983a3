"""The import path agentlightning.emitter.object of the older releases."""

from agentlightning.core.spans.readers import get_object_value as get_object_value
from agentlightning.runners.emit import emit_object as emit_object
