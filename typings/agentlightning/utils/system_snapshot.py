"""What agentlightning.utils.system_snapshot was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.machine import system_snapshot as system_snapshot
