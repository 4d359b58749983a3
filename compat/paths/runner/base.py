"""The import path agentlightning.runner.base of the older releases."""

from agentlightning.runners.worker.base import Runner as Runner
