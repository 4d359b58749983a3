"""The import path agentlightning.config of the older releases."""

from agentlightning.compat.lightning_cli import lightning_cli as lightning_cli
