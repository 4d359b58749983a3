"""What agentlightning.config was; written from compat/old_paths.py by tests/make_stubs.py."""

from agentlightning.compat.lightning_cli import lightning_cli as lightning_cli
