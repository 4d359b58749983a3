"""What agentlightning.utils.system_snapshot was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.runners.worker.system_snapshot import system_snapshot as system_snapshot
