"""What agentlightning.instrumentation was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.tracing.openai_patch import instrument_all as instrument_all
from agentlightning.runners.tracing.openai_patch import uninstrument_all as uninstrument_all
