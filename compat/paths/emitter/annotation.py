"""The import path agentlightning.emitter.annotation of the older releases."""

from agentlightning.runners.emit import emit_annotation as emit_annotation
from agentlightning.runners.emit import operation as operation
