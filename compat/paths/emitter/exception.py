"""What agentlightning.emitter.exception was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.emit.emitters import emit_exception as emit_exception
