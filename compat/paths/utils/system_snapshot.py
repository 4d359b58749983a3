"""The import path agentlightning.utils.system_snapshot of the older releases."""

from agentlightning.runners.worker.system_snapshot import system_snapshot as system_snapshot
