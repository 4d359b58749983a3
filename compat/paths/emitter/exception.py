"""The import path agentlightning.emitter.exception of the older releases."""

from agentlightning.runners.emit import emit_exception as emit_exception
