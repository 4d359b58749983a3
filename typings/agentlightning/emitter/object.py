"""What agentlightning.emitter.object was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.emitters import emit_object as emit_object
from agentlightning.runners.readers import get_object_value as get_object_value
