"""What agentlightning.config was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.cli.class_options import lightning_cli as lightning_cli
