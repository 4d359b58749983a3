"""What agentlightning.emitter.object was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.emit.emitters import emit_object as emit_object
from agentlightning.core.spans.readers import get_object_value as get_object_value
