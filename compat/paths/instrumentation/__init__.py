"""The import path agentlightning.instrumentation of the older releases."""

from agentlightning.runners.tracing.openai_patch import instrument_all as instrument_all
from agentlightning.runners.tracing.openai_patch import uninstrument_all as uninstrument_all
