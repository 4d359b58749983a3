"""What agentlightning.emitter.exception was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.emitters import emit_exception as emit_exception
