"""What agentlightning.instrumentation was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.instrumentation import instrument_all as instrument_all
from agentlightning.runners.instrumentation import uninstrument_all as uninstrument_all
