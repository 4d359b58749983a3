"""What agentlightning.emitter.annotation was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.emit.emitters import emit_annotation as emit_annotation
from agentlightning.runners.emit.operation import operation as operation
