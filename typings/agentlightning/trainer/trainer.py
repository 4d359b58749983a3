"""What agentlightning.trainer.trainer was; written from cli/old_paths.py by tests/make_stubs.py."""

from agentlightning.algorithms.trainer import Trainer as Trainer
