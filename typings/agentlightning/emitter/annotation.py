"""What agentlightning.emitter.annotation was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.emitters import emit_annotation as emit_annotation
from agentlightning.runners.operations import operation as operation
